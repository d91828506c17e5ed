"""Steps around a model: `Transformed` is a predictor with the package's inputs and outputs, not the artifact's.

Knows which steps are declared and that their names fit together, not how each works.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from foretell.core.errors import PackageError, did_you_mean
from foretell.core.model import Predictor
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import Signature, Tensors
from foretell.runtimes.ragged import RUN_TOKENS, Ragged
from foretell.runtimes.step import MASK, Context, Step
from foretell.runtimes.trust import title
from foretell.store.package import Package

STEPS = {
    "text": "foretell.runtimes.text",
    "image": "foretell.runtimes.image",
    "pool": "foretell.runtimes.vectors",
    "normalize": "foretell.runtimes.vectors",
    "labels": "foretell.runtimes.labels",
    "custom": "foretell.runtimes.custom",
}
"""The module of each step kind; imported when a package declares one, for the libraries behind it are heavy.

Each offers `make_step(step, context) -> Step`.
"""


class Transformed:
    """before steps → model → after steps, as one predictor with the package's signature."""

    def __init__(
        self, predictor: Predictor, before: Sequence[Step], after: Sequence[Step], signature: Signature
    ) -> None:
        self._predictor = predictor
        self._before = tuple(before)
        self._after = tuple(after)
        self._signature = signature
        self._feeds = [s.name for s in predictor.signature.inputs]

    @property
    def signature(self) -> Signature:
        return self._signature

    def predict(self, inputs: Tensors) -> Tensors:
        given = dict(inputs)
        for step in self._before:
            given |= step(given, given)
        outputs = self._predictor.predict({name: given[name] for name in self._feeds})
        for step in self._after:
            outputs = outputs | step(outputs, given)
        return outputs

    def close(self) -> None:
        self._predictor.close()


def transformed(predictor: Predictor, package: Package, settings: ReplicaSettings, trust_code: bool) -> Transformed:
    """Wrap `predictor` in the steps of the package's model.toml.

    Raises `PackageError` if a step needs a tensor that nothing makes or a file that is not there, `UntrustedCode`
    for custom steps without `trust_code`.
    """
    declared = package.manifest.transform
    model = predictor.signature

    def make(step: Any, after: bool) -> Step:
        maker: Callable[[Any, Context], Step] = importlib.import_module(STEPS[_kind(step)]).make_step
        return maker(step, Context(package, model, after, settings.threads, trust_code))

    before = [make(step, False) for step in declared.before]
    after = [make(step, True) for step in declared.after]
    _check_flow(package, model, before, after)
    if any(_kind(step) == "text" for step in declared.before) and any(s.name == MASK for s in model.inputs):
        on_cpu = getattr(predictor, "device", "cpu") == "cpu"
        predictor = Ragged(predictor, MASK, RUN_TOKENS if on_cpu else 0)
    return Transformed(predictor, before, after, package.manifest.signature)


def _kind(step: Any) -> str:
    return str(step.__struct_config__.tag)


def _check_flow(package: Package, model: Signature, before: Sequence[Step], after: Sequence[Step]) -> None:
    """Follow the names through all steps. Stops at a custom step, which may make anything."""
    where = f"{title(package)}: model.toml"
    known = {s.name for s in package.manifest.signature.inputs}
    for stage, makes in ((before, tuple(s.name for s in model.inputs)), (after, ())):
        for step in stage:
            for name in step.reads:
                if name not in known:
                    raise PackageError(
                        f'{where}: a {type(step).__name__} step needs the tensor "{name}", which nothing before it'
                        f" makes. {did_you_mean(name, known)}"
                    )
            if step.makes is None:
                return
            known.update(step.makes)
        if stage is before:
            for name in makes:
                if name not in known:
                    raise PackageError(
                        f'{where}: the model takes "{name}", but neither the signature nor a step gives it'
                    )
            known.update(s.name for s in model.outputs)
    for spec in package.manifest.signature.outputs:
        if spec.name not in known:
            raise PackageError(
                f'{where}: the signature promises the output "{spec.name}", which neither the model nor a step'
                f" makes. {did_you_mean(spec.name, known)}"
            )
