"""Language models: whatever the source, the same steps to a package. Knows no file format of models.

A source gives config, weights and tokenizer in Hugging Face's terms; here they become a decoder's graph at the
chosen precision, a tokenizer.json of one form, and the measured cost of the precision.
"""

import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
from numpy.typing import NDArray
from tokenizers import Tokenizer

from foretell.core.errors import ConfigError, PackageError, did_you_mean
from foretell.core.generation import Sampling
from foretell.core.tensor import Signature, TensorSpec
from foretell.importers.draft import Draft
from foretell.llm.families import read_config
from foretell.llm.graph import build
from foretell.llm.linear import Precision
from foretell.llm.perplexity import BUNDLED, perplexity, windows
from foretell.llm.spec import DecoderSpec
from foretell.llm.template import TEMPLATE, ChatTemplate
from foretell.llm.text import TOKENIZER
from foretell.llm.text import Tokenizer as PackageTokenizer
from foretell.llm.weights import Weights
from foretell.store.manifest import LlmOptions, Perplexity

ARTIFACT = "model.onnx"
BLOCK_SIZE = 32
"""The blocks that GGUF files have too, so that weights of theirs in four bits are kept exactly."""
SIGNATURE = Signature((TensorSpec("text_input", "BYTES", (1,)),), (TensorSpec("text_output", "BYTES", (1,)),))
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")


@dataclass
class Source:
    """A language model as its files give it. `config`: a config.json. `eos`: the tokenizer's own first."""

    config: dict[str, Any]
    weights: Weights
    tokenizer: Tokenizer
    template: str
    sampling: Sampling
    bos: int
    eos: tuple[int, ...]


def make(source: Source, draft: Draft) -> None:
    """Fill `draft` with the package of a language model. Raises `PackageError`, `ConfigError`, `Unsupported`."""
    precision, block_size = chosen(draft)
    spec = read_config(source.config)
    write_texts(draft, source.tokenizer, source.template)
    draft.report(f"{spec.family}, {spec.layers} layers: drawing the graph at {precision}")
    weights = _Counted(source.weights, f"writing {precision} weights", draft)
    build(spec, weights, draft.folder, precision, block_size)
    count = sum(weights.sizes.values())
    size = sum(file.stat().st_size for file in draft.folder.glob(f"{ARTIFACT}*"))
    draft.report(f"the graph takes {size / 1e6:,.0f} MB, {8 * size / count:.1f} bits a weight")
    draft.runtime, draft.artifact, draft.signature = "llm", ARTIFACT, SIGNATURE
    draft.llm = LlmOptions(
        context=spec.context,
        vocab=spec.vocab,
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        bos=source.bos,
        eos=all_ends(source.eos, draft),
        precision=precision,
        block_size=block_size if precision == "int4" else 0,
        sampling=source.sampling,
        perplexity=_measure(spec, source, count, draft) if draft.choices.measure and precision != "fp32" else None,
    )


def chosen(draft: Draft) -> tuple[Precision, int]:
    """The precision and block size that the user asked for. Raises `ConfigError` for a precision that is none."""
    name, block_size = draft.choices.precision or "int4", draft.choices.block_size
    if block_size is not None and name != "int4":
        raise ConfigError(f"--block-size {block_size}: only the scales of int4 are of blocks, not those of {name}")
    for precision in get_args(Precision):
        if name == precision:
            return precision, block_size or BLOCK_SIZE
    raise ConfigError(f'--precision "{name}" is none. {did_you_mean(name, get_args(Precision))}')


def write_texts(draft: Draft, tokenizer: Tokenizer, template: str) -> None:
    """Write tokenizer.json and, if there is one, the chat template. A file that the user put beside wins.

    Raises `PackageError` for a template that is none.
    """
    if not (draft.folder / TOKENIZER).exists():
        (draft.folder / TOKENIZER).write_text(canonical(tokenizer), "utf-8")
    path = draft.folder / TEMPLATE
    if template and not path.exists():
        path.write_text(template, "utf-8")
    if path.exists():
        ChatTemplate(path.read_text("utf-8"), where=TEMPLATE)
    else:
        draft.report("no chat template: it completes text, and takes no chats")


def all_ends(eos: Sequence[int], draft: Draft) -> tuple[int, ...]:
    """`eos` and the ends of turns that the package's chat template writes: many models name only the end of a text."""
    path = draft.folder / TEMPLATE
    template = path.read_text("utf-8") if path.exists() else ""
    tokenizer = Tokenizer.from_file(str(draft.folder / TOKENIZER))
    turns = [tokenizer.token_to_id(name) for name in _TURN_ENDS if name in template]
    return tuple(dict.fromkeys([*eos, *(token for token in turns if token is not None)]))


def canonical(tokenizer: Tokenizer) -> str:
    """tokenizer.json in one form for all tokenizers that encode and decode alike, however they were written.

    Left out: truncation and padding, what a pair of texts becomes, and offsets of tokens, which nobody asks for.
    """
    document = json.loads(tokenizer.to_str())
    document["truncation"] = document["padding"] = None
    steps = []
    for step in _steps(document["post_processor"], "processors"):
        if step["type"] == "TemplateProcessing" and len(step["single"]) > 1:
            steps.append({**step, "pair": [*step["single"], {"Sequence": {"id": "B", "type_id": 1}}]})
        elif step["type"] not in ("TemplateProcessing", "ByteLevel"):
            steps.append(step)
    document["post_processor"] = _sequence(steps, "processors")
    cuts = _steps(document["pre_tokenizer"], "pretokenizers")
    for step in (*cuts, *_steps(document["decoder"], "decoders")):
        if step["type"] == "ByteLevel":
            step["trim_offsets"] = True
    document["pre_tokenizer"] = _sequence(cuts, "pretokenizers")
    if document["decoder"] and document["decoder"]["type"] == "ByteLevel":
        document["decoder"] |= {"add_prefix_space": True, "use_regex": True}  # read by nothing when decoding
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if key in document["model"]:
            document["model"][key] = document["model"][key] or None
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _sequence(steps: Sequence[dict[str, Any]], key: str) -> dict[str, Any] | None:
    return {"type": "Sequence", key: list(steps)} if len(steps) > 1 else steps[0] if steps else None


class _Counted:
    """Weights that tell how much of them was read, and how many numbers they are."""

    def __init__(self, weights: Weights, doing: str, draft: Draft) -> None:
        self._weights, self._doing, self._draft = weights, doing, draft
        self.sizes: dict[str, int] = {}

    def names(self) -> Collection[str]:
        return self._weights.names()

    def get(self, name: str) -> NDArray[np.float32]:
        weight = self._weights.get(name)
        self.sizes[name] = weight.size
        self._draft.progress(self._doing, min(1.0, len(self.sizes) / max(1, len(self._weights.names()))))
        return weight


def _measure(spec: DecoderSpec, source: Source, count: int, draft: Draft) -> Perplexity | None:
    """What the package's precision costs on the evaluation text; None where fp32 does not fit into this machine."""
    if 3 * 4 * count > psutil.virtual_memory().available:  # the file, the session's copy of it, and some air
        draft.report(
            f"no perplexity: the weights in fp32 take {4 * count / 1e9:.0f} GB, more than this machine can spare"
        )
        return None
    text = draft.choices.evaluation or BUNDLED
    tokenizer = PackageTokenizer.load(draft.folder)
    try:
        tokens = tokenizer.encode(text.read_text("utf-8"), special=False)
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"--eval {text}: {error}; name a UTF-8 text file") from None
    begin = [token for token in tokenizer.encode("") if token == source.bos]
    texts = windows(tokens, spec.context, begin)
    with tempfile.TemporaryDirectory(prefix="foretell-fp32-") as scratch:
        build(spec, _Counted(source.weights, "writing fp32 weights", draft), Path(scratch), "fp32")
        fp32 = _perplexity(Path(scratch), texts, "measuring fp32", draft)
    package = _perplexity(draft.folder, texts, "measuring the package", draft)
    predicted = sum(len(text) - 1 for text in texts)
    draft.report(
        f"perplexity {package:.2f}, {package / fp32 - 1:+.1%} against fp32 ({fp32:.2f}), over {predicted:,} tokens of"
        f" {text.name}"
    )
    return Perplexity(round(fp32, 3), round(package, 3), text.name, predicted)


def _perplexity(folder: Path, texts: Sequence[Sequence[int]], doing: str, draft: Draft) -> float:
    return perplexity(folder / ARTIFACT, texts, progress=lambda share: draft.progress(doing, share))
