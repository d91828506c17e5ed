"""`import_model`: tell what a source is, hand it to the importer of its format, write the package.

Sources are recognised by content where a name can lie. Frameworks are imported by the importer that needs them.
"""

import hashlib
import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from foretell.core.errors import ConfigError, PackageError, UntrustedCode
from foretell.importers.draft import Draft, LlmChoices, Progress, Report, copy_file
from foretell.store.manifest import Manifest, decode_manifest, encode_manifest
from foretell.store.package import MANIFEST, SAMPLE, SEAL, Package

_MODULES = {
    "onnx": "foretell.importers.onnx",
    "skops": "foretell.importers.sklearn",
    "xgboost": "foretell.importers.boosting",
    "lightgbm": "foretell.importers.boosting",
    "torch": "foretell.importers.torch",
    "function": "foretell.importers.function",
    "gguf": "foretell.importers.gguf",
    "huggingface": "foretell.importers.huggingface",
    "genai": "foretell.importers.genai",
}
"""Format → the module whose `import_file(path, draft, kind)` reads it."""

_EXTRAS = {
    "skops": "sklearn",
    "xgboost": "boosting",
    "lightgbm": "boosting",
    "gguf": "llm",
    "huggingface": "llm",
    "genai": "llm",
}
HUB = "hf://"

_EXTENSIONS = {
    ".onnx": "onnx",
    ".skops": "skops",
    ".ubj": "xgboost",
    ".pt2": "torch",
    ".py": "function",
    ".gguf": "gguf",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".joblib": "pickle",
}
PICKLE_ADVICE = (
    "it is a pickle, and unpickling runs whatever code is in it. Pass --trust-code if you trust whoever made it, or"
    " save the model in a format that holds no code: skops.io.dump(model, 'model.skops') for scikit-learn,"
    " model.save_model('model.json') for XGBoost, booster.save_model('model.txt') for LightGBM, or ONNX"
)
_STATE_DICTS = (".pt", ".pth", ".bin", ".safetensors")
_COMPANIONS = ("tokenizer.json", "chat_template.jinja", "labels.json", "transform.py", SAMPLE)

SUPPORTED = (
    "an .onnx file, a .skops file, an XGBoost model (.json, .ubj), a LightGBM model (.txt), a torch.export program"
    " (.pt2), a Python file with a predict function (.py), a fitted model in a pickle (with --trust-code), a folder"
    " with one of them, or a language model: a .gguf file, a Hugging Face folder (config.json, tokenizer.json and"
    " safetensors), hf://owner/name, or a folder that onnxruntime-genai's builder made"
)


def import_model(
    source: Path | str | Any,
    out: Path,
    *,
    trust_code: bool = False,
    config: Mapping[str, Any] | None = None,
    choices: LlmChoices = LlmChoices(),
    report: Report = lambda line: None,
    progress: Progress = lambda doing, share: None,
) -> Manifest:
    """Make a package of `source` in the folder `out` (created; must be empty).

    source: a file, a folder, hf://owner/name, or a fitted scikit-learn, XGBoost or LightGBM object. config: keys of
    model.toml that win over what is inferred. `choices` are of language models. What was done goes line by line to
    `report`. Raises `PackageError` with what is supported, `UntrustedCode` when reading `source` would run its code
    and `trust_code` is false.
    """
    out.mkdir(parents=True, exist_ok=True)
    draft = Draft(out, trust_code, dict(config or {}), report, choices, progress)
    if not isinstance(source, (Path, str)):
        _import_object(source, draft)
        return draft.finish()
    if str(source).startswith(HUB):
        draft.source = str(source)
        source = _importer("huggingface").download(str(source).removeprefix(HUB), draft)
    path = Path(source)
    if not path.exists():
        raise PackageError(f"{path}: no such file or folder; name {SUPPORTED}")
    if path.is_dir():
        return _import_folder(path, draft)
    _import_file(path, draft)
    return draft.finish()


def _import_folder(folder: Path, draft: Draft) -> Manifest:
    given: dict[str, Any] = {}
    if (folder / MANIFEST).exists():
        try:
            given = msgspec.toml.decode((folder / MANIFEST).read_bytes())
        except msgspec.DecodeError as error:
            raise PackageError(f"{folder / MANIFEST}: {error}") from None
    if {"runtime", "artifact", "signature"} <= given.keys():
        shutil.copytree(folder, draft.folder, dirs_exist_ok=True)
        draft.report("the folder is a package already; taken as it is")
        manifest = Package.open(draft.folder).manifest
        if draft.config:
            manifest = decode_manifest(tomli_w.dumps({**given, **draft.config}), "the configuration given")
            (draft.folder / MANIFEST).write_text(encode_manifest(manifest))
            (draft.folder / SEAL).unlink(missing_ok=True)
        return manifest
    draft.config = {**given, **draft.config}
    if kind := _language_model(folder):
        draft.source = draft.source or folder.resolve().name
        _importer(kind).import_file(folder, draft, kind)
        return draft.finish()
    models = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_model(path)]
    if len(models) != 1:
        found = ", ".join(path.name for path in models) or "none"
        raise PackageError(f"{folder}: expected one model file, found {found}; name {SUPPORTED}")
    for name in _COMPANIONS:
        if (folder / name).exists():
            copy_file(folder / name, draft.folder)
    data = models[0].with_name(models[0].name + ".data")  # external weights of an ONNX file
    if data.exists():
        copy_file(data, draft.folder)
    _import_file(models[0], draft)
    return draft.finish()


def _language_model(folder: Path) -> str | None:
    if (folder / "genai_config.json").is_file():
        return "genai"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) and not any(folder.glob("*.onnx")):
        return "huggingface"
    return None


def _is_model(path: Path) -> bool:
    if path.name in _COMPANIONS or path.name == MANIFEST:
        return False
    return path.suffix in _EXTENSIONS or path.suffix in _STATE_DICTS or _sniff(path) is not None


def _import_file(path: Path, draft: Draft) -> None:
    with path.open("rb") as file:
        draft.source, draft.source_sha256 = path.name, hashlib.file_digest(file, "sha256").hexdigest()
    kind = _EXTENSIONS.get(path.suffix) or _sniff(path)
    if kind == "pickle":
        _import_object(_unpickle(path, draft), draft)
        return
    if kind is None:
        advice = ""
        if path.suffix in _STATE_DICTS:
            advice = " It looks like bare weights, which have no graph: export the model with torch.export or to ONNX."
        raise PackageError(f"{path}: not a model foretell can read.{advice} Name {SUPPORTED}")
    if draft.choices.given and kind != "gguf":
        raise ConfigError(f"{path.name} is no language model: --precision, --block-size and --eval are for these alone")
    _importer(kind).import_file(path, draft, kind)


def _sniff(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.lstrip().startswith(b"{") and b'"learner"' in head:
        return "xgboost"
    if head.startswith(b"tree\n") and b"version=" in head:
        return "lightgbm"
    return "pickle" if head[:1] == b"\x80" and path.suffix not in _STATE_DICTS else None


def _unpickle(path: Path, draft: Draft) -> Any:
    if not draft.trusted:
        raise UntrustedCode(f"{path}: {PICKLE_ADVICE}")
    joblib = _framework("joblib", "sklearn")
    draft.report(f"{path.name} is a pickle; unpickling it runs its code (--trust-code)")
    try:
        return joblib.load(path)
    except Exception as error:
        raise PackageError(f"{path} could not be unpickled: {type(error).__name__}: {error}") from None


def _import_object(model: Any, draft: Draft) -> None:
    module = type(model).__module__.partition(".")[0]
    kind = {"xgboost": "xgboost", "lightgbm": "lightgbm"}.get(module)
    if kind is None and not hasattr(model, "get_params"):
        raise PackageError(
            f"a {type(model).__module__}.{type(model).__name__} is not a model foretell can read. Name {SUPPORTED}"
        )
    draft.source = draft.source or f"{type(model).__module__}.{type(model).__name__}"
    _importer(kind or "skops").import_object(model, draft)


def _importer(kind: str) -> Any:
    try:
        return importlib.import_module(_MODULES[kind])
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(kind, kind)
        raise PackageError(
            f"importing this model needs the Python package {error.name}; pip install 'foretell[{extra}]'"
        ) from None


def _framework(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise PackageError(f"this needs the Python package {name}; pip install 'foretell[{extra}]'") from None
