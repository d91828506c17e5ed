"""`foretell pack`."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli.console import working
from foretell.cli.importing import make_package
from foretell.cli.options import BlockSize, Evaluation, Measure, Precision, TrustCode
from foretell.core.errors import PackageError
from foretell.importers.draft import LlmChoices
from foretell.store.package import seal, zip_package


def run(
    path: Annotated[
        str, typer.Argument(help="Model file, folder with one and its companions, a package, or hf://owner/name.")
    ],
    out: Annotated[Path, typer.Argument(help="The package to write: a new folder, or a file ending in .zip.")],
    description: Annotated[str, typer.Option(help="A line for people.")] = "",
    sample: Annotated[Path | None, typer.Option(metavar="FILE", help="Sample rows as JSON columns.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML with keys of model.toml.")] = None,
    precision: Precision = None,
    block_size: BlockSize = None,
    evaluation: Evaluation = None,
    measure: Measure = True,
    trust_code: TrustCode = False,
) -> None:
    """Make a package of a model without a store: to copy, to serve from a folder, to put on S3.

    \b
    Examples:
      foretell pack model.onnx ./package
      foretell pack digits.skops digits.zip
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackageError(f"{out} is there already; name a new folder or file")
    with tempfile.TemporaryDirectory(prefix="foretell-") as scratch:
        folder = Path(scratch, "package") if out.suffix == ".zip" else out
        choices = LlmChoices(precision, block_size, evaluation, measure)
        with working(f"importing {path}") as progress:
            make_package(
                path, folder, trust_code, description, sample, config, partial(typer.echo, err=True), choices, progress
            )
        digest = seal(folder).digest
        if out.suffix == ".zip":
            zip_package(folder, out)
    print(f"{out}: {digest[:12]}")
