"""Small tokenizers of the three kinds that language models have, built with Hugging Face's own library."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "def main(argv):\n    return {'a': 1, \"b\": [2, 3]}  # comment\n",
    "Übergrößenträger naïve façade — 12,345.67 €",
    "日本語のテキスト、中文文本，한국어 텍스트",
    "Быстрая коричневая лиса; γρήγορη αλεπού; ثعلب سريع; मानक हिन्दी",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 é e\u0301",
] * 3
TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces\tand\n\n newlines  ",
    "naïve café — €5 日本語 한국어 русский עברית हिन्दी ไทย",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 flags and families",
    "for i in range(10):\n\tprint(f'{i:>3}')\r\n",
    "<s>[INST] hi </s><|im_start|>user\nx<|im_end|>",
    "1234567890 3.14159 0xFF",
    "don't we'll I'M",
    "\u0000\u00a0\ufeff\u200b",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level(size: int = 600) -> Tokenizer:
    """Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) with control tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece(size: int = 500) -> Tokenizer:
    """BPE over "▁" with byte fallback, as Llama 2 and Mistral have it; encodes with <s> first."""
    base = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = [*SPECIAL[:3], *(f"<0x{byte:02X}>" for byte in range(256)), *SPECIAL[3:]]
    # All bytes are in the vocabulary from the start; the trainer's "special tokens" are how they get their ids.
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=pieces, show_progress=False)
    base.train_from_iterator([text for text in CORPUS if text.isascii()], trainer)
    model = base.to_str()
    vocab, merges = base.get_vocab(), [tuple(pair) for pair in _merges(model)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return tokenizer


def _merges(text: str) -> list[list[str]]:
    return json.loads(text)["model"]["merges"]


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
