"""`load`: which module runs a package, and the checks that hold for every runtime.

Model libraries are optional and heavy, so runtimes are looked up in a table of module names and imported when a
package first asks for one; the gateway's process never does. Knows no model library.
"""

import importlib
from collections.abc import Callable
from typing import Any

from foretell.core.errors import PackageError
from foretell.core.model import Generator, Predictor
from foretell.core.settings import GenerationSettings, ReplicaSettings
from foretell.core.tensor import Signature, TensorSpec
from foretell.runtimes.checked import Checked
from foretell.runtimes.trust import refuse_untrusted, title
from foretell.store.package import Package

RUNTIMES = {
    "onnx": "foretell.runtimes.onnx",
    "sklearn": "foretell.runtimes.sklearn",
    "xgboost": "foretell.runtimes.boosting",
    "lightgbm": "foretell.runtimes.boosting",
    "torch": "foretell.runtimes.torch",
    "function": "foretell.runtimes.function",
}
"""The module of each `Manifest.runtime`; it has `open_predictor(package, settings, trust_code) -> Predictor`."""

GENERATOR = "foretell.llm.loading"
"""Stands beside the table: the runtime "llm" makes generators, with `open_generator(package, settings)`."""

TRANSFORM = "foretell.runtimes.transform"

_EXTRAS = {
    "onnxruntime": "",
    "sklearn": "[sklearn]",
    "skops": "[sklearn]",
    "xgboost": "[boosting]",
    "lightgbm": "[boosting]",
    "torch": "[torch]",
    "jinja2": "[llm]",
    "llguidance": "[llm]",
    "onnx": "[llm]",
}


def load(package: Package, settings: ReplicaSettings, trust_code: bool = False) -> Predictor:
    """Load `package` into a predictor whose signature is the package's own; transforms run inside it.

    `settings.threads` 0 means all cores. Raises `PackageError` when a file is missing, corrupt or contradicts
    model.toml or when a library is missing, `UntrustedCode` when loading would run the package's code and
    `trust_code` is false, `ConfigError` when `settings.device` is not to be had here.
    """
    manifest = package.manifest
    if manifest.runtime == "llm":
        raise PackageError(f"{title(package)} is a language model: it generates text and predicts no rows")
    if manifest.trust_code and not trust_code:
        refuse_untrusted(package, "its model.toml says that loading runs code from the package")
    open_predictor = _from(RUNTIMES[manifest.runtime], "open_predictor", manifest.runtime)
    predictor: Predictor = open_predictor(package, settings, trust_code)
    if manifest.transform.before or manifest.transform.after:
        predictor = _from(TRANSFORM, "transformed", "transform")(predictor, package, settings, trust_code)
    check_agreement(manifest.signature, predictor.signature, package)
    return Checked(predictor, manifest.signature)


def load_generator(
    package: Package, settings: ReplicaSettings, generation: GenerationSettings = GenerationSettings()
) -> Generator:
    """Load a package of runtime "llm"; `generation.draft` is a folder or empty.

    Raises as `load` does, and `PackageError` for every other runtime.
    """
    if package.manifest.runtime != "llm":
        raise PackageError(
            f'{title(package)} has the runtime "{package.manifest.runtime}": it predicts rows and generates no text'
        )
    generator: Generator = _from(GENERATOR, "open_generator", "llm")(package, settings, generation)
    return generator


def check_agreement(declared: Signature, actual: Signature, package: Package) -> None:
    """Raise `PackageError` if model.toml promises tensors that the loaded model does not take or make.

    model.toml may leave out outputs and narrow variable axes, or declare the row axis of a fixed one; it may not
    rename, retype or change the rank.
    """
    for kind, wanted, real in (
        ("input", declared.inputs, actual.inputs),
        ("output", declared.outputs, actual.outputs),
    ):
        by_name = {spec.name: spec for spec in real}
        for spec in wanted:
            if spec.name not in by_name:
                known = ", ".join(map(str, real))
                raise PackageError(
                    f'{title(package)}: model.toml declares the {kind} "{spec.name}", the model has {known}'
                )
            if not _agree(spec, by_name[spec.name]):
                raise PackageError(
                    f"{title(package)}: model.toml declares the {kind} {spec}, the model has {by_name[spec.name]}"
                )
        if kind == "input" and (missing := by_name.keys() - {s.name for s in wanted}):
            raise PackageError(
                f"{title(package)}: the model also needs the input {', '.join(sorted(missing))}, which"
                " model.toml leaves out"
            )


def _agree(declared: TensorSpec, actual: TensorSpec) -> bool:
    return (
        declared.datatype == actual.datatype
        and len(declared.shape) == len(actual.shape)
        and all(d == a or a == -1 for d, a in zip(declared.shape, actual.shape, strict=True))
    )


def _from(module: str, name: str, runtime: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing == "foretell":
            raise
        raise PackageError(
            f'runtime "{runtime}" needs the Python package "{missing}", which is not installed: pip install'
            f" 'foretell{_EXTRAS.get(missing, '')}'"
        ) from None
