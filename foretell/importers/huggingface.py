"""Hugging Face folders: config.json, tokenizer.json, safetensors. `hf://` names are downloaded by huggingface_hub."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import Tokenizer

from foretell.core.errors import PackageError
from foretell.core.generation import Sampling
from foretell.importers.draft import Draft
from foretell.importers.llm import Source, make
from foretell.llm.safetensors_weights import SafetensorsWeights
from foretell.llm.template import TEMPLATE
from foretell.llm.text import TOKENIZER

_FILES = ("*.json", "*.safetensors", "*.jinja")


def import_file(folder: Path, draft: Draft, kind: str) -> None:
    """Make a package of a Hugging Face folder."""
    config = read_json(folder / "config.json")
    generation = read_json(folder / "generation_config.json", needed=False)
    tokenizer = read_tokenizer(folder)
    settings = read_json(folder / "tokenizer_config.json", needed=False)
    bos, eos = ends(tokenizer, settings, (generation, config.get("text_config") or {}, config))
    template = read_template(folder, settings, draft)
    make(Source(config, SafetensorsWeights(folder), tokenizer, template, sampling(generation), bos, eos), draft)


def download(name: str, draft: Draft) -> Path:
    """The folder of `owner/name` from the Hugging Face hub, or from its cache. Raises `PackageError` offline."""
    draft.progress(f"downloading {name}", 0.0)
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise PackageError(f"hf://{name}: {error}; write hf://owner/name") from None
    except LocalEntryNotFoundError:
        raise PackageError(
            f"hf://{name}: the hub cannot be reached, and the model is not in its cache. Name a folder or a .gguf file"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise PackageError(f"hf://{name} could not be downloaded: {error}") from None


def read_json(path: Path, needed: bool = True) -> dict[str, Any]:
    """The object in a JSON file; {} for one that is not there unless it is needed. Raises `PackageError`."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if needed:
            raise PackageError(f"{path.parent} has no {path.name}; take the model's whole folder") from None
        return {}
    except ValueError as error:
        raise PackageError(f"{path}: no valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise PackageError(f"{path}: should hold an object, not a {type(value).__name__}")
    return value


def read_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json of a folder. Raises `PackageError`, with the way to make one of older files."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise PackageError(
            f"{folder} has no {TOKENIZER}. transformers makes one of a model's other tokenizer files: python -c"
            " \"from transformers import AutoTokenizer as T; T.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise PackageError(f"{path} is not a tokenizer that this version of tokenizers reads: {error}") from None


def read_template(folder: Path, settings: Mapping[str, Any], draft: Draft) -> str:
    """The folder's chat template, the default one of several; "" if it has none."""
    for name in (TEMPLATE, "chat_template.json"):
        if (folder / name).is_file():
            whole = (folder / name).read_text("utf-8")
            return whole if name == TEMPLATE else str(read_json(folder / name).get("chat_template", ""))
    template = settings.get("chat_template") or ""
    if isinstance(template, str):
        return template
    named = {str(each.get("name")): str(each.get("template", "")) for each in template}
    if len(named) > 1:
        draft.report(f"of the chat templates {', '.join(named)} the default one is taken")
    return named.get("default", "")


def ends(
    tokenizer: Tokenizer, settings: Mapping[str, Any], configs: Iterable[Mapping[str, Any]]
) -> tuple[int, tuple[int, ...]]:
    """The ids of bos (-1: none) and of everything that ends an answer, the tokenizer's own eos first."""
    bos, eos = _id(tokenizer, settings.get("bos_token")), [_id(tokenizer, settings.get("eos_token"))]
    for config in configs:
        given = config.get("eos_token_id")
        eos += given if isinstance(given, list) else [-1 if given is None else given]
        if bos < 0 and isinstance(config.get("bos_token_id"), int):
            bos = config["bos_token_id"]
    return bos, tuple(dict.fromkeys(token for token in eos if token >= 0))


def _id(tokenizer: Tokenizer, token: Any) -> int:
    name = token.get("content") if isinstance(token, Mapping) else token
    number = tokenizer.token_to_id(name) if isinstance(name, str) else None
    return -1 if number is None else number


def sampling(generation: Mapping[str, Any]) -> Sampling:
    """What the model's makers recommend; nothing where they say that it should not be sampled."""
    if generation.get("do_sample") is False:
        return Sampling()
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return Sampling(**{name: generation[name] for name in names if generation.get(name) is not None})
