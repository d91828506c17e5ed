"""`foretell stream`."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from foretell.app.config import Config, load_config
from foretell.app.packages import open_store
from foretell.app.streams import Keeps, Reads, Route, StreamService, StreamSpec
from foretell.cli.options import DatabaseUrl, StoreUrl, TrustCode
from foretell.cli.signals import on_interrupt
from foretell.cli.stream_view import View, serve_metrics, told
from foretell.cli.stream_workers import RESET, Workers, report_channel, report_to
from foretell.store.store import Store
from foretell.streams.formats import FormatName
from foretell.streams.message import MOST_BYTES
from foretell.streams.pace import BUFFER, MOST
from foretell.streams.state import CACHE_BYTES
from foretell.telemetry.log import setup_logging

if sys.platform == "win32":
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    from uvloop import new_event_loop

From = Annotated[str, typer.Option("--from", metavar="SOURCE", help="kafka://HOST/TOPIC?group=G, a path, or -.")]
To = Annotated[str, typer.Option("--to", metavar="SINK", help="kafka://HOST/TOPIC, a path, -, or null://.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FIELD=INPUT", help="Which field feeds an input; a,b,c=INPUT joins several."),
]
Key = Annotated[str, typer.Option(metavar="FIELD", help="The field that is the key.", show_default="the source's")]
DeadLetter = Annotated[
    str, typer.Option(metavar="SINK", help="Where messages go that cannot be answered, with the reason.")
]
Form = Annotated[FormatName, typer.Option("--format", help="Form of the messages.")]
Schema = Annotated[str, typer.Option(metavar="FILE[#MESSAGE]", help="Of Avro or Protobuf messages.")]
MostBytes = Annotated[int, typer.Option(min=1, metavar="N", help="Bytes of the largest message that is taken.")]
Most = Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Most messages of a micro-batch.")]
Buffer = Annotated[
    int, typer.Option(min=1, metavar="MIB", help="Memory for messages under way; while it is used, none is read.")
]
StateCode = Annotated[
    str, typer.Option("--state", metavar="FILE", help="transform.py: inputs from events and windows over their key.")
]
Loops = Annotated[
    list[str] | None,
    typer.Option("--recurrent", metavar="INPUT=OUTPUT", help="An input that is the output of the key's last message."),
]
Time = Annotated[
    str, typer.Option(metavar="FIELD", help="The field that says when an event was.", show_default="the source's")
]
StateFile = Annotated[
    str, typer.Option(metavar="FILE", help="Where state is kept.", show_default="beside the transform")
]
StateCache = Annotated[
    int, typer.Option(min=1, metavar="MIB", help="Memory for the state of keys in use; more keys wait for the disk.")
]
Reset = Annotated[bool, typer.Option(RESET, help="Begin with empty state; the old file is moved aside.")]
WorkerCount = Annotated[int, typer.Option("--workers", min=1, metavar="N", help="Processes that share the source.")]
Worker = Annotated[int, typer.Option("--worker", hidden=True, help="Which of them this process is.")]
Metrics = Annotated[str, typer.Option(metavar="HOST:PORT", help="Where Prometheus finds /metrics.", show_default="no")]
ConfigFile = Annotated[Path | None, typer.Option(metavar="FILE", help="foretell.toml: settings of the model.")]


def run(
    model: Annotated[str, typer.Argument(metavar="REF", help="A model of the store.")],
    source: From,
    sink: To,
    dead_letter: DeadLetter = "dead-letters.jsonl",
    columns: Columns = None,
    key: Key = "",
    form: Form = "json",
    schema: Schema = "",
    most_bytes: MostBytes = MOST_BYTES,
    state: StateCode = "",
    recurrent: Loops = None,
    event_time: Time = "",
    state_file: StateFile = "",
    state_cache: StateCache = CACHE_BYTES >> 20,
    reset_state: Reset = False,
    workers: WorkerCount = 1,
    worker: Worker = -1,
    most: Most = MOST,
    buffer: Buffer = BUFFER >> 20,
    metrics: Metrics = "",
    config: ConfigFile = None,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    trust_code: TrustCode = False,
) -> None:
    """Run a model on a stream: every message is answered, or ends as a dead letter with the reason.

    Ctrl-C commits what was begun and ends. Which guarantee a pair of ends has: docs/streams.md.

    \b
    Examples:
      foretell stream digits --from rows.jsonl --to answers.jsonl
      foretell stream fraud --from kafka://localhost/payments --to kafka://localhost/scores --map amount,hour=X
      foretell stream fraud --from redis://localhost/in --to nats://localhost/out --state windows.py --trust-code
      tail -f sensor.jsonl | foretell stream anomaly --from - --to https://example.org/alerts
    """
    setup_logging("warning")
    route = Route(source, sink, dead_letter)
    kept = state_file or (str(Path(state).with_suffix(".state")) if state else f"{model.partition('@')[0]}.state")
    if workers > 1:
        route.check_shared()
        asyncio.run(_run_workers(workers, route, metrics, model))
        return
    if worker >= 0:
        route, kept = route.of_worker(worker), f"{kept}.{worker}"
    spec = StreamSpec(
        model,
        route,
        Reads(form, schema, columns or (), key, most_bytes),
        Keeps(state, recurrent or (), event_time, kept, reset_state, state_cache << 20),
        most,
        buffer << 20,
    )
    settings = load_config(config, {"server": {"trust_code": trust_code or None}})
    with open_store(store, database) as opened, asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run_one(settings, opened, spec, worker, metrics))


async def _run_one(config: Config, store: Store, spec: StreamSpec, worker: int, metrics: str) -> None:
    service = StreamService(config, store, spec)
    read = service.progress.counts
    with on_interrupt(_in_order(service.stop)):
        if worker >= 0:
            async with report_to(report_channel(), read):
                await service.run()
            return
        with serve_metrics(metrics, read, spec.model):
            async with View(read, lambda: service.guarantee, spec.route.source, spec.route.sink):
                await service.run()
    print(told(read()), file=sys.stderr)


async def _run_workers(count: int, route: Route, metrics: str, model: str) -> None:
    workers = Workers(count, sys.argv[1:])
    with on_interrupt(_in_order(workers.stop)), serve_metrics(metrics, workers.counts, model):
        async with View(workers.counts, lambda: f"{count} workers", route.source, route.sink):
            await workers.run()
    print(told(workers.counts()), file=sys.stderr)


def _in_order(stop: Callable[[], None]) -> Callable[[], None]:
    """The first call stops in order, the second at once."""
    asked = False

    def heard() -> None:
        nonlocal asked
        if asked:
            os._exit(130)
        asked = True
        stop()

    return heard
