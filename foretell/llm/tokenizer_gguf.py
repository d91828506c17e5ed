"""tokenizer.json from the vocabulary of a GGUF file: byte-level BPE and SentencePiece. Knows no files.

A GGUF file names how text is cut before BPE but does not say it; the patterns are those of the tokenizer.json files
that the vocabularies were made from.
"""

from typing import Any

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from foretell.core.errors import ForetellError, PackageError, Unsupported, did_you_mean

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "▁"

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_LLAMA3 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{_REST}"
_TEKKEN = rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}{_REST_SLASH}"
_GPT4O = (
    rf"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}{_REST_SLASH}"
)
_GPT2, _DIGITS = "", "digits"
"""No pattern of their own: GPT-2's is built into the library; `_DIGITS` cuts numbers into digits before it."""

_PRE = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "mpt", "olmo", "jais"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez"), _QWEN2),
    **dict.fromkeys(("tekken",), _TEKKEN),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
"""`tokenizer.ggml.pre` → how text is cut into words before BPE."""

_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"})
"""A word that is a token needs no merges there (`ignore_merges`)."""
_NORMALIZED = frozenset({"qwen2", "deepseek-r1-qwen"})
"""Text is brought to Unicode's composed form (NFC) first."""
_BOS_BY_DEFAULT = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"})


class Vocabulary(msgspec.Struct):
    """A GGUF file's metadata below "tokenizer.ggml.", and its architecture.

    `token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    """

    architecture: str
    tokens: list[str]
    model: str = ""
    pre: str = "default"
    token_type: list[int] = []
    scores: list[float] = []
    merges: list[str] | None = None
    bos_token_id: int = -1
    eos_token_id: int = -1
    eot_token_id: int = -1
    eom_token_id: int = -1
    unknown_token_id: int = -1
    add_bos_token: bool | None = None
    add_eos_token: bool = False
    add_space_prefix: bool = True

    @property
    def adds_bos(self) -> bool:
        """Whether a bare text begins with bos."""
        if self.add_bos_token is not None:
            return self.add_bos_token and self.bos_token_id >= 0
        return self.bos_token_id >= 0 and (self.model == "llama" or self.pre in _BOS_BY_DEFAULT)

    @property
    def eos(self) -> tuple[int, ...]:
        """Tokens that end an answer, the vocabulary's own first."""
        named = [self.eos_token_id, self.eot_token_id, self.eom_token_id]
        return tuple(dict.fromkeys(token for token in named if 0 <= token < len(self.tokens)))


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a GGUF file's vocabulary.

    Raises `Unsupported` for kinds that foretell does not know, `PackageError` for a vocabulary that makes no tokenizer.
    """
    try:
        return _build(vocabulary)
    except ForetellError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise PackageError(
            f"the GGUF file's vocabulary makes no tokenizer ({error}); put the model's tokenizer.json beside it"
        ) from None


def _build(vocabulary: Vocabulary) -> Tokenizer:
    if vocabulary.model == "gpt2":
        tokenizer = _byte_level(vocabulary)
    elif vocabulary.model == "llama":
        tokenizer = _sentencepiece(vocabulary)
    else:
        raise Unsupported(
            f'the GGUF file\'s tokenizer is of kind "{vocabulary.model}"; foretell builds byte-level BPE ("gpt2") and'
            ' SentencePiece ("llama"). Put the model\'s own tokenizer.json beside the file'
        )
    _add_tokens(tokenizer, vocabulary)
    _surround(tokenizer, vocabulary)
    return tokenizer


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    if vocabulary.pre not in _PRE:
        raise Unsupported(
            f'the GGUF file\'s tokenizer cuts text by rules named "{vocabulary.pre}", which foretell does not know.'
            f" {did_you_mean(vocabulary.pre, _PRE)} Put the model's own tokenizer.json beside the file"
        )
    if vocabulary.merges is None:
        raise PackageError("the GGUF file's BPE vocabulary has no merges; get another conversion of the model")
    merges = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    model = models.BPE(
        _ids(vocabulary.tokens), merges, fuse_unk=False, ignore_merges=vocabulary.pre in _WHOLE_WORDS_FIRST
    )
    tokenizer = Tokenizer(model)
    pattern = _PRE[vocabulary.pre]
    if pattern == _GPT2:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        first = pre_tokenizers.Digits(True) if pattern == _DIGITS else pre_tokenizers.Split(Regex(pattern), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == _DIGITS)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    if vocabulary.pre in _NORMALIZED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    gemma = vocabulary.architecture.startswith("gemma")
    # llama.cpp writes Gemma's tokens of several spaces with real ones.
    tokens = [_SPACE * len(t) if t and not t.strip(" ") else t for t in vocabulary.tokens]
    ranks: dict[str, float] = {token: -number for number, token in enumerate(tokens)}
    if not gemma:
        if len(vocabulary.scores) != len(tokens):
            raise PackageError("the GGUF file's SentencePiece vocabulary has no scores; get another conversion")
        ranks = dict(zip(tokens, vocabulary.scores, strict=True))
    ids = _ids(tokens)
    unknown = vocabulary.tokens[vocabulary.unknown_token_id] if vocabulary.unknown_token_id >= 0 else "<unk>"
    model = models.BPE(
        ids, _merges(ids, ranks), unk_token=unknown if unknown in ids else None, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix and not gemma:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(ids: dict[str, int], ranks: dict[str, float]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary implies: every cut of a piece in two, better pieces first.

    The order within equal ranks is that of Hugging Face's own conversion, so that its files come out.
    """
    found = []
    for piece, rank in ranks.items():
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [(left, right, rank) for left, right in cuts if left in ids and right in ids]
        found += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    found.sort(key=lambda pair: (pair[2], len(pair[0]), len(pair[1])), reverse=True)
    return [(left, right) for left, right, _ in found]


def _ids(tokens: list[str]) -> dict[str, int]:
    """Token → id without the fillers that round a vocabulary up to the rows of its embedding."""
    return {token: number for number, token in enumerate(tokens) if token != f"[PAD{number}]"}


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Control and user-defined tokens are found whole in a text before it is cut."""
    special, plain = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.token_type, strict=False):
        if kind == _CONTROL:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == _USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _surround(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """bos and eos around a bare text, where the vocabulary says so."""
    pieces = ["$A"]
    if vocabulary.adds_bos:
        pieces.insert(0, vocabulary.tokens[vocabulary.bos_token_id])
    if vocabulary.add_eos_token and vocabulary.eos_token_id >= 0:
        pieces.append(vocabulary.tokens[vocabulary.eos_token_id])
    named = [(piece, vocabulary.tokens.index(piece)) for piece in pieces if piece != "$A"]
    if named:
        tokenizer.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=named)
