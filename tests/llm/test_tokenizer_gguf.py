"""Tokenizers built from GGUF vocabularies give the tokens of the originals, on any text."""

import io
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from foretell.core.errors import PackageError, Unsupported
from foretell.llm.text import Tokenizer as PackageTokenizer
from foretell.llm.tokenizer_gguf import Vocabulary, build_tokenizer
from tests.llm.gguf_files import byte_level_vocabulary, sentencepiece_vocabulary
from tests.llm.smollm2 import gguf_file
from tests.llm.vocabularies import CORPUS, SPECIAL, TEXTS, save

# As they stand in the tokenizer.json files of Llama 3, Qwen 2, Mistral Nemo and Phi-4 mini.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"gpt-2": None, "smollm": None, "llama-bpe": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN, "gpt-4o": GPT4O}
WILD = st.lists(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(" \n\t\r'’/.,-_0123456789abcABCÄßéñ日本한러🙂\u0301\u200d▁<|>"),
        st.sampled_from(["'s", "'LL", "  ", "\r\n", "123", "<|im_end|>", "<s>", "the", "Être"]),
    ),
    max_size=30,
).map("".join)


def original(pre: str) -> Tokenizer:
    """A byte-level tokenizer as its family's tokenizer.json has it, trained on a few sentences."""
    special = [*SPECIAL, "<think>"]
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    pattern = BYTE_LEVEL[pre]
    if pattern:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        steps = [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif pre == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if pre == "llama-bpe":
        bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos])
    return tokenizer


def vocabulary_of(metadata: dict, architecture: str = "llama") -> Vocabulary:
    return msgspec.convert({**{k: v for k, (v, _) in metadata.items()}, "architecture": architecture}, Vocabulary)


def built_from(tokenizer: Tokenizer, pre: str) -> Tokenizer:
    metadata = byte_level_vocabulary(tokenizer, pre, tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>"))
    return build_tokenizer(vocabulary_of(metadata))


PAIRS = {pre: (built_from(tokenizer := original(pre), pre), tokenizer) for pre in BYTE_LEVEL}


@pytest.mark.parametrize("pre", BYTE_LEVEL)
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_vocabularies_give_the_original_s_tokens(pre, text):
    ours, theirs = PAIRS[pre]
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids
    if pre in ("llama-bpe", "gpt-2"):  # one begins texts with <s>, the other does not; tekken's files always say so
        assert ours.encode(text).ids == theirs.encode(text).ids


@settings(max_examples=300, deadline=None)
@given(text=WILD, pre=st.sampled_from(list(BYTE_LEVEL)))
def test_byte_level_vocabularies_agree_on_wild_text(text, pre):
    ours, theirs = PAIRS[pre]
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.fixture(scope="module")
def sentencepiece():
    """Processors of sentencepiece itself, the reference: Llama's settings and Gemma's."""
    module = pytest.importorskip("sentencepiece", reason="sentencepiece is the reference")
    made = {}
    for name, prefix in (("llama", True), ("gemma", False)):
        file = io.BytesIO()
        module.SentencePieceTrainer.train(
            sentence_iterator=iter(sentence for text in CORPUS for sentence in text.split("\n")),
            model_writer=file,
            model_type="bpe",
            vocab_size=560,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=prefix,
            character_coverage=0.98,
            minloglevel=9,
        )
        made[name] = module.SentencePieceProcessor(model_proto=file.getvalue())
    return made


def sentencepiece_pair(processors, name):
    metadata = sentencepiece_vocabulary(processors[name], add_space_prefix=name == "llama")
    architecture = "llama" if name == "llama" else "gemma3"
    return build_tokenizer(vocabulary_of(metadata, architecture)), processors[name]


@pytest.fixture(scope="module")
def pairs(sentencepiece):
    return {name: sentencepiece_pair(sentencepiece, name) for name in sentencepiece}


def plain(text: str) -> bool:
    """sentencepiece itself never finds control tokens in a text, and reads "▁" as a space."""
    return text != "" and "<" not in text and "▁" not in text and "\0" not in text


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("text", [text for text in TEXTS if plain(text)])
def test_sentencepiece_vocabularies_give_sentencepiece_s_tokens(pairs, name, text):
    ours, theirs = pairs[name]
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)
    assert ours.encode(text).ids == [theirs.bos_id(), *theirs.encode(text)]


@settings(max_examples=300, deadline=None)
@given(text=WILD.filter(plain), name=st.sampled_from(["llama", "gemma"]))
def test_sentencepiece_vocabularies_agree_on_wild_text(pairs, text, name):
    ours, theirs = pairs[name]
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids) == text


def test_control_tokens_in_a_text_are_found_and_user_defined_ones_are_shown(tmp_path):
    tokenizer = original("qwen2")
    metadata = byte_level_vocabulary(tokenizer, "qwen2")
    kinds = metadata["token_type"][0]
    kinds[tokenizer.token_to_id("<think>")] = 4
    ours = PackageTokenizer.load(save(build_tokenizer(vocabulary_of(metadata)), tmp_path))
    ids = ours.encode("<|im_start|>a<think>b<|im_end|>")
    assert ids[0] in ours.special_ids and ids[-1] in ours.special_ids
    assert tokenizer.token_to_id("<think>") in ids
    assert ours.decode(ids) == "a<think>b"


def test_smollm2_s_own_vocabulary_gives_transformers_tokens(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    pytest.importorskip("torch", reason="transformers reads GGUF files with torch")
    from foretell.llm.gguf import GgufModel

    file = gguf_file()
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = GgufModel.open(file)
    ours = PackageTokenizer.load(save(build_tokenizer(model.vocabulary()), tmp_path))
    # transformers does not cut numbers into digits when it reads this file, as the model's own tokenizer.json does.
    for text in [*TEXTS, Path(__file__).read_text(), model.chat_template()]:
        text = "".join(char for char in text if not char.isnumeric())
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    digits = [ours.token_bytes(token) for token in ours.encode("x = 1234 ²½")]
    assert digits == [b"x", b" =", b" ", b"1", b"2", b"3", b"4", b" ", b"\xc2\xb2", b"\xc2\xbd"]
    assert model.vocabulary().eos == (ours.token_id("<|im_end|>"),)


def test_fillers_of_a_rounded_vocabulary_are_no_tokens():
    tokenizer = original("gpt-2")
    metadata = byte_level_vocabulary(tokenizer, "gpt-2")
    size = len(metadata["tokens"][0])
    metadata["tokens"][0].extend(f"[PAD{size + i}]" for i in range(3))
    metadata["token_type"][0].extend([5] * 3)
    assert build_tokenizer(vocabulary_of(metadata)).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"pre": "qwen-2"}, Unsupported, r'"qwen-2".*Did you mean "qwen2".*tokenizer\.json'),
        ({"model": "t5"}, Unsupported, r'of kind "t5".*tokenizer\.json'),
        ({"merges": None}, PackageError, "has no merges"),
        ({"model": "llama"}, PackageError, "has no scores"),
    ],
)
def test_vocabularies_that_cannot_be_built_say_why(changes, error, reason):
    whole = vocabulary_of(byte_level_vocabulary(original("gpt-2"), "gpt-2"))
    with pytest.raises(error, match=reason):
        build_tokenizer(msgspec.structs.replace(whole, **changes))
