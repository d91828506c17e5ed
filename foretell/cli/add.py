"""`foretell add`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from foretell.app.packages import open_store
from foretell.cli.console import busy, print_json, working
from foretell.cli.importing import make_package
from foretell.cli.options import AsJson, BlockSize, DatabaseUrl, Evaluation, Measure, Precision, StoreUrl, TrustCode
from foretell.cli.show import describe_llm
from foretell.core.reference import check_name
from foretell.importers.draft import LlmChoices
from foretell.store.manifest import Manifest
from foretell.store.version import VersionInfo


def run(
    name: Annotated[str, typer.Argument(help="The name it gets; a known name gets its next version.")],
    path: Annotated[
        str, typer.Argument(help="Model file, folder with one and its companions, a package, or hf://owner/name.")
    ],
    alias: Annotated[
        str, typer.Option(metavar="ALIAS", help="Also point this alias at the new version, such as live.")
    ] = "",
    description: Annotated[str, typer.Option(help="A line for people.")] = "",
    sample: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sample rows as JSON columns; made up if not given.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with keys of model.toml that win over what is inferred.")
    ] = None,
    precision: Precision = None,
    block_size: BlockSize = None,
    evaluation: Evaluation = None,
    measure: Measure = True,
    trust_code: TrustCode = False,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Register a trained model as the next version of a name.

    Takes ONNX, skops, XGBoost and LightGBM files, torch.export programs, and Python files with a predict function.
    Models that run faster as ONNX are converted, and the conversion is proved on sample rows. Language models are
    GGUF files, Hugging Face folders or names of the hub; what their precision costs is measured as perplexity.

    \b
    Examples:
      foretell add minilm ./model.onnx
      foretell add digits digits.skops --alias live
      foretell add minilm ./minilm/ --config transform.toml     a folder with model.onnx, tokenizer.json
      foretell add scorer score.py --trust-code
      foretell add smollm2 SmolLM2-135M-Instruct.Q4_1.gguf --precision int4
    """
    check_name(name)
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="foretell-") as scratch:
        choices = LlmChoices(precision, block_size, evaluation, measure)
        with working(f"importing {path}") as progress:
            out = Path(scratch, name)
            manifest = make_package(path, out, trust_code, description, sample, config, lines.append, choices, progress)
        with open_store(store, database) as opened, busy("copying into the store"):
            info = opened.add(name, out)
            if alias:
                opened.set_alias(name, alias, info.number)
    if as_json:
        print_json({**_facts(info), "alias": alias or None, "notes": lines})
        return
    for line in lines:
        typer.secho(f"  {line}", dim=True, err=True)
    _say(info, manifest, alias)


def _facts(info: VersionInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "version": info.number,
        "digest": info.digest,
        "runtime": info.runtime,
        "unchanged": info.unchanged,
    }


def _say(info: VersionInfo, manifest: Manifest, alias: str) -> None:
    if info.unchanged:
        print(f"{info} has these contents already; nothing was added")
    else:
        print(f"added {info} ({manifest.runtime}, {info.digest[:12]})")
    if manifest.llm:
        print(f"  {describe_llm(manifest.llm)[0]}")
    else:
        print(f"  in   {', '.join(map(str, manifest.signature.inputs))}")
        print(f"  out  {', '.join(map(str, manifest.signature.outputs))}")
    if manifest.parity:
        p = manifest.parity
        print(f"  same answers as {p.against} on {p.rows} rows within {p.max_abs_diff:.1e} (tolerance {p.tolerance:g})")
    if alias:
        print(f"  {info.name}@{alias} → {info.number}")
    trust = " --trust-code" if manifest.trust_code else ""
    print(f"Serve it: foretell serve {info.name}{trust}")
