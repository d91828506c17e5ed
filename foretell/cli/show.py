"""`foretell show`."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from foretell.app.packages import Opened, is_path, open_store, open_target
from foretell.cli.console import human_bytes, print_json
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl
from foretell.core.tensor import TensorSpec
from foretell.store.manifest import LlmOptions, manifest_document
from foretell.store.package import SEAL, package_files
from foretell.store.sample import encode_columns


def run(
    target: Annotated[str, typer.Argument(metavar="REF|PATH", help="A model of the store, or a package.")],
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Explain one version: signature, transform, parity, lineage, files, aliases, and how to call it.

    \b
    Examples:
      foretell show minilm
      foretell show digits@2 --json
    """
    with open_store(store, database) as opened_store, tempfile.TemporaryDirectory() as scratch:
        opened = open_target(target, opened_store, Path(scratch))
        aliases: dict[str, int] = {}
        versions = [int(opened.version)]
        if not is_path(target):
            aliases = opened_store.aliases(opened.name)
            versions = [info.number for info in opened_store.versions(opened.name)]
        facts = {
            "name": opened.name,
            "version": int(opened.version),
            "versions": versions,
            "aliases": aliases,
            "digest": opened.package.digest,
            "files": _files(opened),
            "manifest": manifest_document(opened.package.manifest),
            "path": str(opened.package.path),
        }
        if as_json:
            print_json(facts)
        else:
            _print(opened, facts)


def _files(opened: Opened) -> dict[str, int]:
    folder = opened.package.path
    return {name: (folder / name).stat().st_size for name in package_files(folder) if name != SEAL}


def _print(opened: Opened, facts: dict[str, Any]) -> None:
    manifest = opened.package.manifest
    own = [alias for alias, number in facts["aliases"].items() if number == facts["version"]]
    marks = f" ({', '.join(own)})" if own else ""
    print(f"{opened.name}@{opened.version}{marks}  {manifest.runtime}  {opened.package.digest[:16]}")
    if manifest.description:
        print(f"  {manifest.description}")
    _section("inputs", map(str, manifest.signature.inputs))
    _section("outputs", map(str, manifest.signature.outputs))
    _section("before", map(_step, manifest.transform.before))
    _section("after", map(_step, manifest.transform.after))
    for group in ("batching", "cache", "replicas", "options"):
        values = facts["manifest"].get(group)
        _section(group, [", ".join(f"{k} = {v}" for k, v in values.items())] if values else [])
    _section("llm", describe_llm(manifest.llm) if manifest.llm else [])
    if manifest.parity:
        p = manifest.parity
        line = f"same as {p.against} on {p.rows} rows: off by at most {p.max_abs_diff:.2e}, allowed {p.tolerance:g}"
        _section("parity", [line])
    lineage = manifest.lineage
    came = " ".join(filter(None, (lineage.source, lineage.source_sha256[:16], lineage.converter, *lineage.parents)))
    _section("from", [came] if came else [])
    _section("files", [f"{name}  {human_bytes(size)}" for name, size in facts["files"].items()])
    _section("versions", [", ".join(map(str, facts["versions"]))])
    _section("aliases", [f"{alias} → {number}" for alias, number in facts["aliases"].items()])
    if manifest.trust_code:
        print("  loading it runs code from the package: it needs --trust-code")
    print("\nTry it while it is served:")
    print(f"  {call(opened)}")


def describe_llm(llm: LlmOptions) -> list[str]:
    """Lines about a language model: its sizes, its sampling, what its precision cost."""
    blocks = f" in blocks of {llm.block_size}" if llm.block_size else ""
    lines = [f"{llm.precision}{blocks}, {llm.layers} layers, {llm.vocab:,} tokens, context {llm.context:,}"]
    if given := msgspec.to_builtins(llm.sampling, str_keys=True):
        lines.append("sampled with " + ", ".join(f"{key} = {value}" for key, value in given.items()))
    if p := llm.perplexity:
        cost = p.package / p.fp32 - 1
        lines.append(f"perplexity {p.package:.2f}, {cost:+.1%} against fp32, over {p.tokens:,} tokens of {p.text}")
    return lines


def _section(title: str, lines: Any) -> None:
    for position, line in enumerate(lines):
        print(f"  {title if position == 0 else '':<9} {line}")


def _step(step: Any) -> str:
    values = msgspec.to_builtins(step)
    kind = values.pop("kind")
    return f"{kind}: {', '.join(f'{k} = {v}' for k, v in values.items()) or 'defaults'}"


def call(opened: Opened, url: str = "http://127.0.0.1:8080") -> str:
    """A command line that asks a server for the package's first sample row: curl with Open Inference Protocol JSON,
    or `foretell predict` where the row is no text (an image), or what talks to a language model.
    """
    if opened.package.manifest.runtime == "llm":
        if (opened.package.path / "chat_template.jinja").is_file():
            return f"foretell chat {url} --model {opened.name}"
        return f'curl {url}/v1/completions -d \'{{"model": "{opened.name}", "prompt": "Once upon a time"}}\''
    sample = opened.package.sample()
    specs = opened.package.manifest.signature.inputs
    one = {spec.name: _first(sample[spec.name] if sample else None, spec) for spec in specs}
    if any(isinstance(value, dict) for _, data in one.values() for value in data):
        return f"foretell predict {url}/{opened.name} --image FILE"
    body = {
        "inputs": [
            {"name": s.name, "datatype": s.datatype, "shape": one[s.name][0], "data": one[s.name][1]} for s in specs
        ]
    }
    text = msgspec.json.encode(body).decode().replace("'", "'\\''")
    return f"curl {url}/v2/models/{opened.name}/infer -d '{text}'"


def _first(array: Any, spec: TensorSpec) -> tuple[list[int], Any]:
    """Shape and data of one row: of the sample, or zeros where there is none."""
    if array is None:
        shape = [1 if d < 0 else d for d in spec.shape]
        size = 1
        for d in shape:
            size *= d
        return shape, ["" if spec.datatype == "BYTES" else 0] * size
    row = array[:1] if spec.shape and spec.shape[0] == -1 else array
    data = encode_columns({spec.name: row.ravel()})[spec.name]
    if row.dtype.kind == "f":
        data = [round(value, 4) for value in data]
    return list(row.shape), data
