"""The workloads of the comparison; each starts its servers, proves their answers, measures, stops them.

A server that cannot run here is skipped and the reason kept; a workload without its model likewise.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks import grpc_load, models, servers, wire
from benchmarks.ceiling import BATCHES, Ceiling, search
from benchmarks.client import ask, direct
from benchmarks.environments import Unavailable, require_tool
from benchmarks.load import Sample
from benchmarks.models import Model
from benchmarks.rounds import Record, Target, ceiling_target, http_target, run_rounds
from benchmarks.servers import Server


@dataclass
class Run:
    """What a run was asked for and what it has found so far."""

    rounds: int
    seconds: float
    records: list[Record] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def measure(self, workload: str, targets: list[Target], rounds: int, seconds: float) -> None:
        for target in targets:
            if target.process:
                self.facts[f"{workload} {target.name} idle share of a core"] = target.process.idle_share
        self.records += run_rounds(workload, targets, rounds, seconds, self.say)

    @contextmanager
    def serving(self, starts: dict[str, Callable[[Model], Server]], model: Model) -> Iterator[list[Server]]:
        """Start what can start, yield it, stop it all. Reasons of what cannot go to `skipped`."""
        up: list[Server] = []
        try:
            for name, start in starts.items():
                try:
                    server = start(model)
                except Unavailable as error:
                    self.skipped[name] = str(error)
                    self.say(f"{name} is skipped: {error}")
                    continue
                up.append(server)
                self.settings[server.name] = server.settings
                self.say(f"{server.name} serves {model.name} ({server.settings})")
            yield up
        finally:
            for server in up:
                server.process.stop()

    def accept(self, server: Server, make: Callable[[], Target]) -> list[Target]:
        """`[make()]`, or `[]` with the reason kept when the answers are wrong."""
        try:
            return [make()]
        except (ValueError, OSError, KeyError) as error:
            self.skipped[server.name] = f"wrong answers, not timed: {error}"
            self.say(f"{server.name} is not timed: {error}")
            return []


def tiny(run: Run) -> None:
    """One row of 64 floats as JSON, 1, 8 and 64 clients."""
    model = models.digits()
    want, payloads = direct(model), [wire.as_json(rows) for rows in model.rows]
    starts = {"foretell": servers.foretell, **servers.PEER_STARTS}
    with run.serving(starts, model) as up:
        targets = []
        for server in up:
            targets += run.accept(
                server, lambda s=server: http_target(s, model, payloads, want, (1, 8, 64), s.json_path)
            )
        run.measure("tiny", targets, run.rounds, run.seconds)


def heavy(run: Run, workload: str, model: Model, with_json: bool) -> None:
    """foretell and the naive server on one model at 8 and 64 clients, beside the in-process ceiling."""
    want = direct(model)
    binary = [wire.as_binary(rows) for rows in model.rows]
    text = [wire.as_json(rows) for rows in model.rows] if with_json else []
    best, found = search(model, *((1.0, BATCHES) if run.rounds > 3 else (0.5, (1, 8, 32))))
    for setup, rate in found.items():
        run.facts[f"{workload} in-process {setup}, rows/s"] = rate
    run.settings[f"in-process onnxruntime, {workload}"] = f"best of {len(found)}: {best}"
    run.say(f"{workload}: the ceiling is {best}, {found[best]:.1f} rows/s")
    ceiling = Ceiling(model, best)
    try:
        with run.serving({"foretell": servers.foretell, "FastAPI": servers.fastapi}, model) as up:
            targets = [ceiling_target(ceiling)]
            for server in up:
                targets += run.accept(
                    server, lambda s=server: http_target(s, model, binary, want, (8, 64), s.binary_path, steady=True)
                )
                name = f"{server.name}, JSON"
                if with_json:
                    targets += run.accept(
                        server,
                        lambda s=server, n=name: http_target(s, model, text, want, (8, 64), s.json_path, n, True),
                    )
            # One batch may take half a second here: measurements are longer, and fewer.
            run.measure(workload, targets, max(1, run.rounds * 2 // 3), run.seconds * 2.5)
    finally:
        ceiling.close()


def embedder(run: Run) -> None:
    """MiniLM int8, 32 tokens; binary tensors and JSON."""
    heavy(run, "embedder", models.embedder(), with_json=True)


def image(run: Run) -> None:
    """EfficientNet-Lite0, 224 × 224, binary tensors."""
    heavy(run, "image", models.image(), with_json=False)


def grpc(run: Run) -> None:
    """The tiny model over gRPC at 64 clients."""
    require_tool("h2load", "nghttp2-client")
    model = models.digits()
    frame = grpc_load.frame(model.name, model.rows[0])
    starts = {
        "foretell": servers.foretell,
        "MLServer": servers.mlserver,
        "Triton core": servers.triton,
    }
    with run.serving(starts, model) as up:
        targets = []
        for server in up:
            targets += run.accept(server, lambda s=server: _grpc_target(s, model, frame))
        run.measure("grpc", targets, run.rounds, run.seconds)


def _grpc_target(server: Server, model: Model, frame: bytes) -> Target:
    check_grpc(server, model)

    def measure(clients: int, seconds: float) -> Sample:
        got = grpc_load.run(server.grpc_port, frame, clients, seconds)
        return Sample(got.requests_per_s, got.mean_s * 1000, float("nan"), got.failed, got.succeeded + got.failed)

    server.process.measure_idle()
    return Target(server.name, measure, (64,), server.process)


def check_grpc(server: Server, model: Model) -> None:
    """One call by a plain gRPC client; raises `ValueError` unless it answers as onnxruntime does."""
    import grpc as grpcio

    with grpcio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(f"/{grpc_load.SERVICE}/ModelInfer")
        try:
            raw = call(grpc_load.frame(model.name, model.rows[0])[5:], timeout=20)
        except grpcio.RpcError as error:
            raise ValueError(f"{server.name} over gRPC: {error.code()} {error.details()}") from None
    answer = grpc_load.oip_pb2.ModelInferResponse.FromString(raw)
    wire.check_answer(wire.read_grpc(answer), direct(model)[0], model.tolerance, f"{server.name} over gRPC")


def observed(run: Run) -> None:
    """Metrics, Parquet observations and the access log on, against all of them off; 64 clients, twice the rounds."""
    model = models.digits()
    want, payloads = direct(model), [wire.as_json(rows) for rows in model.rows]
    starts = {"foretell": servers.foretell, "off": lambda m: servers.foretell(m, observe=False)}
    with run.serving(starts, model) as up:
        targets = []
        for server in up:
            targets += run.accept(server, lambda s=server: http_target(s, model, payloads, want, (64,), s.json_path))
        run.measure("observed", targets, run.rounds * 2, run.seconds)


def footprint(run: Run) -> None:
    """Cold start to the first answer, and resident memory of gateway and replicas after some load."""
    model = models.digits()
    payload = wire.as_json(model.rows[0])
    servers.foretell_store(model)
    for attempt in range(3 if run.rounds > 3 else 1):
        start = time.monotonic()
        server = servers.foretell(model)
        try:
            ask(server.port, server.json_path, payload)
            run.facts[f"footprint cold start to first answer {attempt + 1}, s"] = time.monotonic() - start
            target = http_target(server, model, [payload], direct(model)[:1], (8,), server.json_path)
            target.measure(8, 1.0)
            for i, process in enumerate(server.process.tree()):
                role = "gateway" if i == 0 else f"replica {i}"
                run.facts[f"footprint {role} RSS, MB"] = process.memory_info().rss / 1e6
        finally:
            server.process.stop()
        run.say(f"footprint: cold start {attempt + 1} done")


WORKLOADS: dict[str, Callable[[Run], None]] = {
    "tiny": tiny,
    "embedder": embedder,
    "image": image,
    "grpc": grpc,
    "observed": observed,
    "footprint": footprint,
}
