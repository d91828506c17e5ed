"""What a stream shows of itself while it runs: a live view on a terminal, trouble elsewhere, and /metrics."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from prometheus_client import start_http_server
from rich.console import Console
from rich.live import Live
from rich.table import Table

from foretell.core.errors import ConfigError
from foretell.report.units import seconds
from foretell.streams.metrics import StreamMetrics
from foretell.streams.progress import Counts

EVERY_S = 0.25


class View:
    """As an async context manager: shows what `read` gives until the end. Standard error only."""

    def __init__(self, read: Callable[[], Counts], guarantee: Callable[[], str], source: str, sink: str) -> None:
        self._read = read
        self._guarantee = guarantee
        self._ends = f"{source} → {sink}"
        self._began = time.monotonic()
        self._console = Console(stderr=True)

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._show() if self._console.is_terminal else self._tell())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _show(self) -> None:
        with Live(console=self._console, transient=True, refresh_per_second=8) as live:
            while True:
                live.update(self.table())
                await asyncio.sleep(EVERY_S)

    async def _tell(self) -> None:
        """What is waited for, once each time it changes."""
        trouble = ""
        while True:
            now = self._read().trouble
            if now and now != trouble:
                print(f"waiting: {now}", file=sys.stderr, flush=True)
            trouble = now
            await asyncio.sleep(EVERY_S)

    def table(self) -> Table:
        """The stream in a few rows."""
        now = self._read()
        table = Table.grid(padding=(0, 2))
        table.add_row("[bold]stream", f"{self._ends}  [dim]{self._guarantee() or 'loading the model'}")
        table.add_row("running", seconds(time.monotonic() - self._began))
        table.add_row("answers", f"{now.answered:,}  [bold]{now.per_s:,.0f}/s")
        table.add_row("latency", f"p50 {now.p50_ms:,.0f} ms, p99 {now.p99_ms:,.0f} ms, end to end")
        table.add_row("lag", f"{now.lag:,}" if now.lag >= 0 else "[dim]unknown")
        table.add_row("dead letters", f"{now.dead:,}" if not now.dead else f"[yellow]{now.dead:,}")
        if now.late or now.ahead:
            table.add_row("untimely", f"{now.late:,} late, {now.ahead:,} from a future not believed")
        if now.trouble:
            table.add_row("[red]waiting", now.trouble)
        return table


def told(now: Counts) -> str:
    """The end of a stream in a line."""
    words = [f"{now.answered:,} answers", f"p50 {now.p50_ms:.0f} ms", f"p99 {now.p99_ms:.0f} ms"]
    if now.late:
        words.append(f"{now.late:,} late events")
    return ", ".join([*words, f"{now.dead:,} dead letters"])


@contextlib.contextmanager
def serve_metrics(address: str, read: Callable[[], Counts], model: str) -> Iterator[None]:
    """/metrics at HOST:PORT while the body runs; nothing without an address. Raises `ConfigError`."""
    if not address:
        yield
        return
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host or "127.0.0.1", StreamMetrics(read, model).registry)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f'metrics cannot be served at "{address}": {error}. Write HOST:PORT, with a free port'
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
