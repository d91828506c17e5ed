"""`foretell check`."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer

from foretell.accel.hardware import usable_cores
from foretell.app.model import Model
from foretell.app.packages import Opened, open_store, open_target
from foretell.cli import check_generation
from foretell.cli.console import busy, print_json
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl, TrustCode
from foretell.core.errors import ModelFailed, PackageError
from foretell.core.reference import Reference
from foretell.core.request import Request
from foretell.core.tensor import Tensors
from foretell.fleet.launcher import LocalProcess
from foretell.fleet.spec import fit
from foretell.plane.plane import Plane
from foretell.plane.spec import DeploymentSpec
from foretell.store.sample import encode_columns

RUNS = 20
TOLERANCE = 1e-4


class Findings(msgspec.Struct):
    """What a check found. Milliseconds are medians of `RUNS` calls with the whole sample."""

    model: str
    digest: str
    rows: int
    replica_ms: float
    direct_ms: float
    start_s: float
    max_abs_diff: float
    outputs: dict[str, object]


def run(
    target: Annotated[str, typer.Argument(metavar="REF|PATH", help="A model of the store, a package or a model file.")],
    trust_code: TrustCode = False,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Run a package's own sample through the whole pipe, and compare with a run in this process.

    Verifies the digest, starts a real replica, sends the sample, compares every output. A language model continues
    a short text instead. Exit code 1 and the reason when anything is wrong.

    \b
    Examples:
      foretell check digits
      foretell check ./package && foretell add digits ./package
    """
    with open_store(store, database) as opened_store, tempfile.TemporaryDirectory(prefix="foretell-") as scratch:
        with busy(f"checking {target}"):
            opened = open_target(target, opened_store, Path(scratch), trust_code)
            generates = opened.package.manifest.runtime == "llm"
            findings = check_generation.examine(opened, _spec(opened)) if generates else examine(opened, trust_code)
    if as_json:
        print_json(findings)
    elif isinstance(findings, check_generation.GenerationFindings):
        check_generation.show(findings)
    else:
        _show(findings)


def _show(findings: Findings) -> None:
    print(f"{findings.model} is sound ({findings.digest[:12]})")
    print(f"  sample   {findings.rows} rows; replica {findings.replica_ms:.2f} ms, direct {findings.direct_ms:.2f} ms")
    print(
        f"  replica  ready after {findings.start_s:.2f} s; differs from direct by {findings.max_abs_diff:.1e} at most"
    )
    for name, value in findings.outputs.items():
        text = str(value)
        print(f"  {name:<8} {text if len(text) <= 100 else text[:99] + '…'}")


def examine(opened: Opened, trust_code: bool) -> Findings:
    """Check one package. Raises `PackageError` without a sample, `ModelFailed` if the two runs disagree."""
    sample = opened.package.sample()
    if sample is None:
        raise PackageError(f"{opened.name} has no sample.json to check with; give one: foretell add --sample FILE")
    rows = opened.package.manifest.signature.check(sample)
    spec = _spec(opened, trust_code)
    with Model(opened, trust_code, spec.replicas) as model:
        direct = model.predict(sample)
        direct_ms = _median_ms(lambda: model.predict(sample))
    answered, times, start_s = asyncio.run(_through_the_pipe(spec, sample, rows))
    return Findings(
        f"{opened.name}@{opened.version}",
        opened.package.digest,
        rows,
        float(np.median(times)) * 1e3,
        direct_ms,
        start_s,
        compare(direct, answered),
        encode_columns({name: array[:1] if array.ndim else array for name, array in answered.items()}),
    )


def _spec(opened: Opened, trust_code: bool = False) -> DeploymentSpec:
    """One replica, as the package says."""
    manifest = opened.package.manifest
    return DeploymentSpec(
        name=opened.name,
        version=opened.version,
        package=str(opened.package.path),
        manifest=manifest,
        batching=manifest.batching,
        cache=manifest.cache,
        replicas=fit(msgspec.structs.replace(manifest.replicas, count=1), usable_cores()),
        cores=usable_cores(),
        trust_code=trust_code,
    )


async def _through_the_pipe(spec: DeploymentSpec, sample: Tensors, rows: int) -> tuple[Tensors, list[float], float]:
    began = time.perf_counter()
    plane = Plane(LocalProcess, lambda observation: None)
    try:
        await plane.deploy(spec)
        start_s = time.perf_counter() - began
        times: list[float] = []
        for _ in range(RUNS):
            began = time.perf_counter()
            response = await plane.infer(Reference(spec.name, spec.version), Request(sample, rows, protocol="check"))
            times.append(time.perf_counter() - began)
    finally:
        await plane.close(1.0)
    return response.outputs, times, start_s


def _median_ms(call: object) -> float:
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        call()  # type: ignore[operator]
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


def compare(direct: Tensors, answered: Tensors) -> float:
    """The largest difference of any float. Raises `ModelFailed` that names the output and row that differ."""
    worst = 0.0
    for name, expected in direct.items():
        got = answered[name]
        if got.shape != expected.shape:
            raise ModelFailed(
                f'output "{name}" has shape {list(got.shape)} from the replica, {list(expected.shape)} here'
            )
        if expected.dtype.kind != "f":
            same = np.asarray(expected == got).reshape(len(expected) if expected.ndim else 1, -1).all(axis=1)
            difference = np.where(same, 0.0, np.inf)
        else:
            gap = np.abs(expected.astype(np.float64) - got.astype(np.float64))
            gap[np.isnan(expected) & np.isnan(got)] = 0.0
            worst = max(worst, float(gap.max(initial=0.0)))
            excess = gap - TOLERANCE * (1.0 + np.abs(np.nan_to_num(expected.astype(np.float64))))
            difference = (
                np.where(excess > 0, excess, 0.0).reshape(len(expected) if expected.ndim else 1, -1).max(axis=1)
            )
        if not (difference == 0.0).all():
            row = int(np.argmax(difference))
            raise ModelFailed(
                f'output "{name}", row {row}: the replica answers otherwise than this process; the model keeps state,'
                " or is random"
            )
    return worst
