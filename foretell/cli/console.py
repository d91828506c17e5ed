"""What verbs print with: JSON and tables on standard output, progress on standard error. Knows no verb."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Table


def print_json(value: Any) -> None:
    """`value` (structs, dicts, lists) as indented JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A plain table; columns whose name starts with ">" are aligned to the right. Piped output is never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(
            name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold", no_wrap=False
        )
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    stdout().print(table)


def stdout() -> Console:
    """Standard output; 160 columns where it is no terminal."""
    return Console(soft_wrap=True) if sys.stdout.isatty() else Console(width=160, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def busy(doing: str) -> Iterator[None]:
    """A spinner with `doing` on standard error while the body runs; nothing where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(doing):
        yield


@contextlib.contextmanager
def working(doing: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on standard error, moved by calls with what is being done and its share from 0 to 1.

    A spinner with `doing` until the first call; nothing where standard error is no terminal.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda doing, share: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(doing, total=None)
        yield lambda doing, share: bars.update(task, description=doing, total=1.0, completed=share)


def human_bytes(size: int) -> str:
    """
    >>> human_bytes(999), human_bytes(21_300_000)
    ('999 B', '21.3 MB')
    """
    if size < 1000:
        return f"{size} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if size < factor * 1000:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e9:.1f} GB"
