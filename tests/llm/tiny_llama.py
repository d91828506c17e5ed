"""A tiny Llama with random weights, as a Hugging Face folder the way transformers writes it, and as a GGUF file."""

import json
from pathlib import Path

import pytest

from tests.llm import vocabularies
from tests.llm.gguf_files import byte_level_vocabulary, write_gguf

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
TOKENIZER = vocabularies.byte_level(600)
BOS, EOS, TURN = map(TOKENIZER.token_to_id, ("<s>", "</s>", "<|im_end|>"))
"""The chat template writes TURN, so it ends answers though no configuration says so."""


def write_folder(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers", reason="transformers makes the checkpoint")
    pytest.importorskip("torch", reason="transformers runs on torch")
    from tests.llm.graph_runs import checkpoint

    settings = transformers.LlamaConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    checkpoint(folder, settings)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZER, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    return folder


def write_file(folder: Path, path: Path) -> Path:
    """The model in `folder` as a GGUF file."""
    return write_gguf(folder, path, byte_level_vocabulary(TOKENIZER, "gpt-2", BOS, EOS), template=TEMPLATE)
