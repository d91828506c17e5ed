"""Options that several verbs share. Declares flags; reads nothing."""

from pathlib import Path
from typing import Annotated

import typer

StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="FORETELL_HOME",
        metavar="URL",
        show_default=False,
        help="Folder or URL of the store; by default the user's data folder.",
    ),
]
DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="FORETELL_DATABASE",
        metavar="URL",
        show_default=False,
        help="Database of the store; by default SQLite inside it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="PRECISION", help="Of a language model's linear layers: int4 (the default), int8, fp16 or fp32."
    ),
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Weights of an int4 language model that share a scale: 16, 32 (the default), 64, 128 or 256."
    ),
]
Evaluation = Annotated[
    Path | None,
    typer.Option(
        "--eval", metavar="FILE", help="Text to measure a language model's perplexity on; a bundled one if not given."
    ),
]
Measure = Annotated[
    bool,
    typer.Option("--measure/--no-measure", help="Whether to measure a language model's perplexity: about a minute."),
]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Allow pickles and Python files: they can do anything that you can."),
]
