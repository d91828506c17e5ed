"""Text → token ids: a tokenizer.json, run over the whole batch and padded to its longest row."""

import msgspec
import numpy as np
from tokenizers import Tokenizer

from foretell.core.errors import PackageError
from foretell.core.tensor import DTYPES, Tensors
from foretell.core.text import decode_text
from foretell.runtimes.step import Context
from foretell.store.manifest import TextStep

_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Model inputs that a tokenizer can feed, and the attribute of its encodings that holds each."""


class Text:
    """Tokenizes `input` [n] BYTES into those of input_ids, attention_mask and token_type_ids that the model takes.

    Each is [n, t] with t the longest row of the batch, at most `max_length`, whatever the tokenizer.json says.
    """

    def __init__(self, step: TextStep, tokenizer: Tokenizer, feeds: dict[str, np.dtype]) -> None:
        self.reads = (step.input,)
        self.makes = tuple(feeds)
        self._input = step.input
        self._tokenizer = tokenizer
        self._feeds = [(name, _FIELDS[name], dtype) for name, dtype in feeds.items()]

    def __call__(self, tensors: Tensors, given: Tensors) -> Tensors:
        texts = decode_text(tensors[self._input], self._input).reshape(-1).tolist()
        # One text alone skips the thread pool behind encode_batch.
        rows = [self._tokenizer.encode(texts[0])] if len(texts) == 1 else self._tokenizer.encode_batch_fast(texts)
        return {name: np.array([getattr(row, field) for row in rows], dtype) for name, field, dtype in self._feeds}


def make_step(step: TextStep, context: Context) -> Text:
    """Open the package's tokenizer. Raises `PackageError` if it is unreadable or feeds none of the inputs."""
    path = context.package.file(step.tokenizer)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise PackageError(f"{path.name} is not a tokenizer that this version of tokenizers reads: {error}") from None
    tokenizer.enable_truncation(max_length=step.max_length)
    tokenizer.enable_padding(**_padding(tokenizer))
    feeds = {s.name: DTYPES[s.datatype] for s in context.model.inputs if s.name in _FIELDS}
    if not feeds:
        names = ", ".join(s.name for s in context.model.inputs)
        raise PackageError(f"a text step feeds {', '.join(_FIELDS)}; the model takes {names}")
    return Text(step, tokenizer, feeds)


class Padding(msgspec.Struct):
    """How the tokenizer fills short rows: its own ids and side, the length always that of the longest row."""

    pad_id: int = 0
    pad_token: str = "[PAD]"
    pad_type_id: int = 0
    direction: str = "right"


def _padding(tokenizer: Tokenizer) -> dict[str, int | str]:
    padding = Padding()
    if tokenizer.padding is not None:
        own = tokenizer.padding
        padding = Padding(own["pad_id"], own["pad_token"], own["pad_type_id"], own["direction"])
    else:
        for token in ("[PAD]", "<pad>", "<|endoftext|>"):
            if (number := tokenizer.token_to_id(token)) is not None:
                padding = Padding(number, token)
                break
    return msgspec.structs.asdict(padding)
