"""`foretell stream`."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from foretell.app.config import load_config
from foretell.app.packages import open_store
from foretell.app.streams import FormatName, StreamService, StreamSpec
from foretell.cli.options import DatabaseUrl, StoreUrl
from foretell.streams.progress import Progress
from foretell.telemetry.log import setup_logging

if sys.platform == "win32":
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    from uvloop import new_event_loop

From = Annotated[str, typer.Option("--from", metavar="SOURCE", help="kafka://host/topic?group=g, a path, or -.")]
To = Annotated[str, typer.Option("--to", metavar="SINK", help="kafka://host/topic, a path, -, or null://.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FIELD=INPUT", help="Which field feeds an input; a,b,c=INPUT joins several."),
]
Key = Annotated[str, typer.Option(metavar="FIELD", help="The field that is the key.", show_default="the source's")]
DeadLetter = Annotated[
    str, typer.Option(metavar="SINK", help="Where messages go that cannot be answered, with the reason.")
]
Form = Annotated[FormatName, typer.Option("--format", help="Form of the messages.")]
Most = Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Most messages of a micro-batch.")]
ConfigFile = Annotated[Path | None, typer.Option(metavar="FILE", help="foretell.toml: settings of the model.")]


def run(
    model: Annotated[str, typer.Argument(metavar="REF", help="A model of the store.")],
    source: From,
    sink: To,
    dead_letter: DeadLetter,
    columns: Columns = None,
    key: Key = "",
    form: Form = "json",
    most: Most = 1024,
    config: ConfigFile = None,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
) -> None:
    """Run a model on a stream: every message is answered, or ends as a dead letter with the reason.

    Ctrl-C commits what was begun and ends. Which guarantee a pair of ends has: docs/streams.md.
    """
    setup_logging("warning")
    spec = StreamSpec(model, source, sink, dead_letter, columns or (), key, form, most)
    service = StreamService(load_config(config), open_store(store, database), spec)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_until_stopped(service))
    print(told(service.progress), file=sys.stderr)


async def _until_stopped(service: StreamService) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, service.stop)
    view = asyncio.ensure_future(_show(service.progress))
    try:
        await service.run()
    finally:
        view.cancel()
        await asyncio.wait([view])


async def _show(progress: Progress) -> None:
    """A line that stays current on standard error; nothing where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return
    with Live(console=console, transient=True) as live:
        while True:
            live.update(told(progress))
            await asyncio.sleep(0.25)


def told(progress: Progress) -> str:
    """Answers, throughput, latency, lag and dead letters in a line."""
    p50, p99 = progress.latency_ms(50, 99)
    words = [f"{progress.answered:,} answers", f"{progress.per_s():,.0f}/s", f"p50 {p50:.0f} ms", f"p99 {p99:.0f} ms"]
    if progress.lag >= 0:
        words.append(f"lag {progress.lag:,}")
    words.append(f"{progress.dead:,} dead letters")
    return ", ".join(words) + (f" ({progress.trouble})" if progress.trouble else "")
