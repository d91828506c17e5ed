"""GGUF files: a language model with its tokenizer and chat template in one file."""

from pathlib import Path

from tokenizers import Tokenizer

from foretell.importers.draft import Draft
from foretell.importers.llm import Source, make
from foretell.llm.gguf import GgufModel
from foretell.llm.text import TOKENIZER
from foretell.llm.tokenizer_gguf import build_tokenizer


def import_file(path: Path, draft: Draft, kind: str) -> None:
    """Make a package of a .gguf file; of a tokenizer.json in its folder, if the folder was named."""
    model = GgufModel.open(path)
    vocabulary, template = model.vocabulary(), model.chat_template()
    own = draft.folder / TOKENIZER
    tokenizer = Tokenizer.from_file(str(own)) if own.exists() else build_tokenizer(vocabulary)
    bos, eos = vocabulary.bos_token_id, vocabulary.eos
    make(Source(model.config(), model, tokenizer, template, model.sampling(), bos, eos), draft)
