"""URLs as people write them → sources and sinks. The only place that knows which file serves which scheme."""

import importlib
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from foretell.core.errors import ConfigError, did_you_mean
from foretell.streams.protocol import Sink, Source


class Scheme(msgspec.Struct, frozen=True):
    """The module that serves a kind of end and the extra that it needs. `timed`: its messages bring their own time.
    `groups`: several readers share its partitions.
    """

    module: str
    extra: str = ""
    timed: bool = False
    groups: bool = False


SCHEMES = {
    "file": Scheme("foretell.streams.files"),
    "std": Scheme("foretell.streams.stdio"),
    "null": Scheme("foretell.streams.stdio"),
    "kafka": Scheme("foretell.streams.kafka", "kafka", timed=True, groups=True),
    "redis": Scheme("foretell.streams.redis", "redis", timed=True),
    "nats": Scheme("foretell.streams.nats", "nats", timed=True),
    "mqtt": Scheme("foretell.streams.mqtt", "mqtt"),
    "http": Scheme("foretell.streams.webhook", "webhook"),
    "https": Scheme("foretell.streams.webhook", "webhook"),
}


class EndUrl(msgspec.Struct, frozen=True):
    """`scheme://host/path?options`; `text` is what the user wrote, `owner` names the stream whose end it is. `letters`:
    it takes dead letters, which do not come in the order of their positions.
    """

    text: str
    scheme: str
    host: str
    path: str
    options: dict[str, str]
    owner: str = ""
    letters: bool = False

    def allow(self, *known: str) -> None:
        """Raises `ConfigError` for an option that is not among `known`."""
        for name in self.options:
            if name not in known:
                raise ConfigError(f'"{self.text}": unknown option "{name}". {did_you_mean(name, known)}')

    def flag(self, name: str, default: bool) -> bool:
        """An option that says yes or no."""
        value = self.options.get(name, "yes" if default else "no")
        if value not in ("yes", "no"):
            raise ConfigError(f'"{self.text}": {name}={value} is neither yes nor no')
        return value == "yes"

    def number(self, name: str, default: float, least: float) -> float:
        """An option that is a number."""
        value = self.options.get(name, str(default))
        try:
            found = float(value)
        except ValueError:
            found = float("nan")
        if not found >= least:
            raise ConfigError(f'"{self.text}": {name}={value} is no number of at least {least:g}')
        return found


def parse_end(text: str) -> EndUrl:
    """A URL, a path, or `-` for standard input or output. Raises `ConfigError`.

    >>> parse_end("kafka://localhost:9092/events?group=g").options
    {'group': 'g'}
    """
    if text == "-":
        return EndUrl(text, "std", "", "", {})
    if "://" not in text:
        return EndUrl(text, "file", "", text, {})
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ConfigError(f'"{text}": unknown kind of end "{parts.scheme}". {did_you_mean(parts.scheme, SCHEMES)}')
    if "@" in parts.netloc:
        raise ConfigError(f"{parts.scheme}://…: no secrets in a URL, where others can read them; use the environment")
    return EndUrl(text, parts.scheme, parts.netloc, parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)))


def scheme_of(text: str) -> Scheme:
    """What kind of end a URL names."""
    return SCHEMES[parse_end(text).scheme]


def open_source(text: str) -> Source:
    """The source that a URL names, not open yet."""
    url = parse_end(text)
    source: Source = _module(url).make_source(url)
    return source


def open_sink(text: str, owner: str = "", letters: bool = False) -> Sink:
    """The sink that a URL names, not open yet. It tells the answers of its `owner` from those of other streams, and
    dead `letters` from answers.
    """
    url = msgspec.structs.replace(parse_end(text), owner=f"{owner} dead-letters" if letters else owner, letters=letters)
    sink: Sink = _module(url).make_sink(url)
    return sink


def _module(url: EndUrl) -> Any:
    scheme = SCHEMES[url.scheme]
    try:
        return importlib.import_module(scheme.module)
    except ModuleNotFoundError as error:
        raise ConfigError(f'"{url.text}" needs {error.name}: pip install "foretell[{scheme.extra}]"') from None
