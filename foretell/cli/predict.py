"""`foretell predict`."""

import csv
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from foretell.app.model import Model, load
from foretell.app.packages import open_store
from foretell.cli.console import busy, print_json, print_table
from foretell.cli.inputs import Given, read_columns
from foretell.cli.options import DatabaseUrl, StoreUrl, TrustCode
from foretell.cli.remote import RemoteModel
from foretell.core.columns import to_tensors
from foretell.core.tensor import Tensor, Tensors
from foretell.store.sample import encode_columns

TOKENS = 128
"""As far as a language model continues a text here; `foretell chat` and the server let it go on."""
_SHOWN = 6


def run(
    target: Annotated[str, typer.Argument(metavar="REF|PATH|URL", help="A model of the store, a file, or a server.")],
    text: Annotated[list[str] | None, typer.Argument(help='Rows of text, for text models; "-" reads lines.')] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An encoded image, or any raw bytes; repeat it for more rows."),
    ] = None,
    json_text: Annotated[
        str,
        typer.Option("--json", metavar="JSON|@FILE", help='Columns: {"x": [[1, 2], [3, 4]]}; @- reads standard input.'),
    ] = "",
    csv_file: Annotated[
        str,
        typer.Option("--csv", metavar="FILE", help="Columns by name, or one vector by order; - reads standard input."),
    ] = "",
    output: Annotated[
        Literal["table", "json", "csv"], typer.Option("--output", "-o", help="Form of the answer.")
    ] = "table",
    trust_code: TrustCode = False,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
) -> None:
    """Ask a model once, in this process or on a running server. A language model continues each text.

    \b
    Examples:
      foretell predict minilm "a cat sat" "a dog ran"
      foretell predict smollm2 "Once upon a time"
      foretell predict lite0 --image cat.png
      foretell predict digits --csv rows.csv --output csv > answers.csv
      foretell predict ./model.onnx --json '{"x": [[1, 2, 3]]}'
      foretell predict http://127.0.0.1:8080/digits --json @rows.json
    """
    given = Given(tuple(text or ()), tuple(image or ()), json_text, csv_file)
    model: Any
    if target.startswith(("http://", "https://")):
        model = RemoteModel(target)
    else:
        with open_store(store, database) as opened, busy(f"loading {target}"):
            model = load(target, opened, trust_code)
    try:
        inputs = to_tensors(read_columns(given, model.signature), model.signature)
        began = time.perf_counter()
        outputs = _continued(model, inputs) if isinstance(model, Model) and model.generates else model.predict(inputs)
        took_ms = (time.perf_counter() - began) * 1e3
    finally:
        model.close()
    if output == "json":
        print_json(encode_columns(outputs))
    elif output == "csv":
        _print_csv(outputs)
    else:
        _print_table(outputs)
        typer.secho(f"{model.name}@{model.version}: {took_ms:.1f} ms", dim=True, err=True)


def _continued(model: Model, inputs: Tensors) -> Tensors:
    """What a language model says to a text, at most `TOKENS` tokens of it."""
    (text,) = inputs.values()
    said = [model.generate(row.decode("utf-8", "replace"), max_tokens=TOKENS).encode() for row in text.ravel()]
    return {model.signature.outputs[0].name: np.array(said, dtype=object)}


def _print_table(outputs: Tensors) -> None:
    names = list(outputs)
    arrays = [array if array.ndim else array.reshape(1) for array in outputs.values()]
    print_table(names, zip(*([_short(row) for row in array] for array in arrays), strict=False))


def _short(row: Any) -> str:
    """A cell: the value, or the first values of a row and how many there are."""
    values = np.asarray(row, dtype=object if isinstance(row, bytes) else None).ravel()
    shown = [_text(value) for value in values[:_SHOWN]]
    more = f" … ({np.asarray(row).size} values)" if values.size > _SHOWN else ""
    return " ".join(shown) + more


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _print_csv(outputs: Tensors) -> None:
    """One column per value: scalars under the output's name, vectors under name_0, name_1, …"""
    header: list[str] = []
    columns: list[Tensor] = []
    for name, array in outputs.items():
        flat = array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(-1, 1)
        header += [name] if flat.shape[1] == 1 else [f"{name}_{i}" for i in range(flat.shape[1])]
        columns += list(flat.T)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    for row in zip(*(column.tolist() for column in columns), strict=False):
        writer.writerow([_exact(value) for value in row])


def _exact(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
