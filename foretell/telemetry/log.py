"""How the process's own log looks: for people on a terminal, JSON lines otherwise. Sets up stdlib logging once;
doesn't know who logs what.
"""

import logging
import sys
import time
import traceback
from typing import Literal, TextIO

import msgspec

from foretell.core.errors import ConfigError, did_you_mean

LEVELS = ("debug", "info", "warning", "error")
Style = Literal["auto", "human", "json"]


class JsonFormatter(logging.Formatter):
    """A record as one JSON line: ts, level, logger, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "ts": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return msgspec.json.encode(line).decode()


def setup_logging(level: str = "info", style: Style = "auto", stream: TextIO | None = None) -> None:
    """Send the log of foretell and its libraries to `stream` (standard error by default), once per process.

    "auto" is human on a terminal and JSON otherwise. foretell logs from `level` up, libraries from warning up.
    Raises `ConfigError` for an unknown level or style.
    """
    if level not in LEVELS:
        raise ConfigError(f'log level "{level}" is unknown. {did_you_mean(level, LEVELS)}')
    if style not in ("auto", "human", "json"):
        raise ConfigError(f'log style "{style}" is unknown. {did_you_mean(style, ("auto", "human", "json"))}')
    out = stream or sys.stderr
    human = style == "human" or (style == "auto" and out.isatty())
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "from_foretell", False):
            root.removeHandler(handler)
    handler = _human_handler(out) if human else logging.StreamHandler(out)
    if not human:
        handler.setFormatter(JsonFormatter())
    handler.from_foretell = True  # type: ignore[attr-defined]  # marks it for the next call
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("foretell").setLevel(level.upper())


def _human_handler(stream: TextIO) -> logging.Handler:
    # rich is imported here because replicas and servers under a supervisor never need it.
    from rich.console import Console
    from rich.logging import RichHandler

    return RichHandler(console=Console(file=stream), show_path=False, rich_tracebacks=False, log_time_format="%H:%M:%S")
