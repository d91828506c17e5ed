"""Text to tokens and back: the package's tokenizer, incremental detokenizing, and stop strings. Knows no model.

Everything that turns tokens into text works on their bytes, so a character split over tokens is never shown in halves,
and the pieces of a stream always join to what `Tokenizer.decode` makes of all its tokens.
"""

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer as Inner

from foretell.core.errors import InvalidInput, PackageError

TOKENIZER = "tokenizer.json"


class Tokenizer:
    """A package's tokenizer.json, in Hugging Face's format.

    `vocab_size`: the largest token id plus one. `special_ids`: control tokens (<|im_end|> and the like), which
    decoding leaves out.
    """

    def __init__(self, inner: Inner, facts: "_Facts") -> None:
        self._inner = inner
        inner.no_truncation()
        inner.no_padding()
        self._bytes = _bytes_by_id(inner, facts)
        self.vocab_size = len(self._bytes)
        self.special_ids = frozenset(token.id for token in facts.added_tokens if token.special)
        self.drops_first_space = facts.decoder is not None and facts.decoder.drops_first_space()

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Open tokenizer.json of a package's folder. Raises `PackageError` if it is missing or unreadable."""
        path = Path(folder, TOKENIZER)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise PackageError(
                f"{path.parent} has no {TOKENIZER}, and a language model needs one; add the model again from its"
                " GGUF file or from a folder with tokenizer.json"
            ) from None
        try:
            return cls(Inner.from_buffer(text), msgspec.json.decode(text, type=_Facts))
        except Exception as error:  # tokenizers raises bare Exception
            raise PackageError(f"{path} is not a tokenizer that this version of tokenizers reads: {error}") from None

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`. `special`: with what the tokenizer puts around a text (bos), as for bare prompts.

        Control tokens written out in `text` become these tokens either way, as chat templates need it. Raises
        `InvalidInput` if `text` holds half a surrogate pair.
        """
        try:
            ids: list[int] = self._inner.encode(text, add_special_tokens=special).ids
        except (UnicodeEncodeError, TypeError):
            raise InvalidInput(
                "the text is no valid Unicode: it holds half a surrogate pair. Send UTF-8, and characters beyond"
                " U+FFFF whole"
            ) from None
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without control tokens; bytes that are no UTF-8 become U+FFFD."""
        stream = Detokenizer(self)
        return "".join([*map(stream.push, ids), stream.flush()])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, in the middle of a text; its name for a control token; b"" for a gap."""
        return self._bytes[token] if 0 <= token < self.vocab_size else b""

    def token_id(self, name: str) -> int | None:
        """The id of the token that is written `name` in the vocabulary."""
        number: int | None = self._inner.token_to_id(name)
        return number


class Detokenizer:
    """Text of a stream of tokens, whole characters only, at the same cost for each token.

    `prompt_ids`: the tokens before the stream. They decide whether the first word's space is dropped, and may end
    inside a character.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.drops_first_space
        tail = b""
        for token in reversed(prompt_ids):
            if token not in tokenizer.special_ids:
                self._strip = False
                tail = tokenizer.token_bytes(token) + tail
                if len(tail) >= 4:
                    break
        self._utf8.decode(tail[-4:])  # leaves the beginning of an unfinished character in it

    def push(self, token: int) -> str:
        """What one more token adds to the text; "" while a character is unfinished and for control tokens."""
        if token in self._tokenizer.special_ids:
            return ""
        raw = self._tokenizer.token_bytes(token)
        if self._strip and raw:
            self._strip = False
            raw = raw.removeprefix(b" ")
        return self._utf8.decode(raw)

    def flush(self) -> str:
        """The end of the text: U+FFFD if the last character was never finished."""
        return self._utf8.decode(b"", True)


class StopFinder:
    """Cuts a stream of text before the first of some stop strings, wherever the pieces' borders are.

    Of several stops the one that is complete first counts, the longest if two end together, so the result does not
    depend on the borders. Raises `InvalidInput` for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise InvalidInput("a stop string is empty, and every text holds it. Leave it out")
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown now, whether a stop was found). After a stop, push no more.

        Only what could still become a stop is held back.
        """
        if not self._stops:
            return text, False
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, when the text ends without a stop."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _Decoder(msgspec.Struct):
    """The parts of a tokenizer.json's decoder that tell how tokens are written."""

    type: str
    decoders: list["_Decoder"] = []
    pattern: dict[str, str] = {}
    content: Any = ""
    start: int = 0
    replacement: str = "▁"
    prepend_scheme: str = "always"
    add_prefix_space: bool = True

    def chain(self) -> list["_Decoder"]:
        return [step for inner in self.decoders for step in inner.chain()] if self.type == "Sequence" else [self]

    def drops_first_space(self) -> bool:
        return any(
            (step.type == "Strip" and step.content == " " and step.start > 0)
            or (step.type == "Metaspace" and step.prepend_scheme != "never" and step.add_prefix_space)
            for step in self.chain()
        )


class _Facts(msgspec.Struct):
    added_tokens: list[_Added] = []
    decoder: _Decoder | None = None


def _bytes_by_id(inner: Inner, facts: _Facts) -> list[bytes]:
    """The bytes of every token by id, as the decoder of the tokenizer.json would write it."""
    vocab: dict[str, int] = inner.get_vocab(with_added_tokens=True)
    result = [b""] * (max(vocab.values(), default=-1) + 1)
    chain = facts.decoder.chain() if facts.decoder else []
    kinds = {step.type for step in chain}
    if "ByteLevel" in kinds:
        table = {char: bytes([byte]) for byte, char in byte_characters().items()}
        for token, number in vocab.items():
            try:
                result[number] = b"".join([table[char] for char in token])
            except KeyError:
                result[number] = token.encode()
    else:
        swaps = [(s.pattern["String"], str(s.content)) for s in chain if s.type == "Replace" and "String" in s.pattern]
        swaps += [(step.replacement, " ") for step in chain if step.type == "Metaspace"]
        for token, number in vocab.items():
            if "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                result[number] = bytes([int(token[3:5], 16)])
                continue
            for old, new in swaps:
                token = token.replace(old, new)
            result[number] = token.encode()
    for added in facts.added_tokens:
        result[added.id] = added.content.encode()
    return result


def byte_characters() -> dict[int, str]:
    """Byte → the printable character that byte-level BPE writes it as (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
