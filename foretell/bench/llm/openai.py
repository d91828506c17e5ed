"""Makes a load target of any server with OpenAI's API: finds the model, learns by a few requests what the server
takes, streams answers. Knows no server's code.
"""

import contextlib
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
import numpy as np

from foretell.bench.http import HttpPool, request_bytes
from foretell.bench.llm.events import AnswerReader, NoText
from foretell.bench.llm.measure import Answer
from foretell.bench.llm.prompts import Prompt, Prompts, Scale, words
from foretell.bench.load import RequestFailed
from foretell.core.errors import ConfigError

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_TIMEOUT_S = 10.0
_SHORT, _LONG = 16, 144
_TOLD = 300
_REFUSALS = ("HTTP 400", "HTTP 404", "HTTP 405", "HTTP 422")
_LOSSES = {
    "ignore_eos": "The server does not take ignore_eos: answers may be shorter than asked.",
    "stream_options": "The server does not take stream_options: it may not count tokens.",
    "temperature": "The server does not take temperature 0: it samples.",
}


class Endpoint(msgspec.Struct, frozen=True):
    """Where and how to ask. `url`: the whole one. `headers`: of every request. `fields`: sent with every request
    beside the prompt and its length. `length_field`: what the longest answer is called. `notes`: what was given up.
    """

    url: str
    model: str
    chat: bool
    headers: dict[str, str]
    fields: dict[str, Any]
    length_field: str = "max_tokens"
    scale: Scale = Scale()
    notes: list[str] = []

    def request(self, prompt: Prompt) -> bytes:
        """A whole HTTP request. Raises `ConfigError` for messages where texts are to be continued."""
        content = prompt.content
        body: dict[str, Any] = {"model": self.model, self.length_field: prompt.output, **self.fields}
        if self.chat:
            body["messages"] = [{"role": "user", "content": content}] if isinstance(content, str) else content
        elif isinstance(content, str) or isinstance(content[0], int):
            body["prompt"] = content
        else:
            raise ConfigError(f"{self.url} continues texts, the prompt is a chat: name {CHAT}, or use --chat")
        return request_bytes(self.url, msgspec.json.encode(body), self.headers)


class OpenAiTarget:
    """Asks `endpoint` for streamed answers to `prompts` (a load `Target`). Every request is the next prompt, also
    across runs: one asked before would come from a cache. `answers`: those since `open`, in the order of their ends.
    """

    rows = 1

    def __init__(self, name: str, endpoint: Endpoint, prompts: Prompts) -> None:
        self.name = name
        self.answers: list[Answer] = []
        self._endpoint = endpoint
        self._prompts = prompts
        self._asked = 0
        self._pool = HttpPool(endpoint.url)

    async def open(self) -> None:
        self.answers = []

    async def send(self, index: int) -> None:
        number, self._asked = self._asked, self._asked + 1
        self.answers.append(await ask(self._pool, self._endpoint, self._prompts(number)))

    async def warm_up(self) -> None:
        """One short answer to the next prompt, which is not recorded."""
        number, self._asked = self._asked, self._asked + 1
        with contextlib.suppress(NoText):
            await ask(self._pool, self._endpoint, msgspec.structs.replace(self._prompts(number), output=8))

    async def close(self) -> None:
        self._pool.close()


async def ask(pool: HttpPool, endpoint: Endpoint, prompt: Prompt) -> Answer:
    """One streamed answer. Raises `RequestFailed` for an error status or a broken stream, `OSError` for none."""
    request = endpoint.request(prompt)
    reader = AnswerReader(time.monotonic())
    failures: list[RequestFailed] = []
    said = bytearray()

    def on_body(piece: bytes) -> None:
        if len(said) < _TOLD:
            said.extend(piece[:_TOLD])
        # What the parser raises would end the connection without a word; so it is kept and raised below.
        try:
            if not failures:
                reader.feed(time.monotonic(), piece)
        except RequestFailed as failure:
            failures.append(failure)

    status = await pool.exchange(request, on_body)
    if not 200 <= status < 300:
        failure = RequestFailed(f"HTTP {status}")
        failure.add_note(said.decode(errors="replace"))
        raise failure
    if failures:
        raise failures[0]
    return reader.answer()


async def connect(
    url: str, model: str = "", chat: bool = False, key: str = "", more: dict[str, Any] | None = None
) -> Endpoint:
    """An endpoint that answers, from `http://HOST:PORT`, that with `/v1`, or the whole URL of an endpoint.

    model: as the server calls it; without, the only one it has. chat: ask for chats; without, texts are continued if
    the server does that. more: fields of every request, which win over ours; null leaves one out. What a server
    refuses of what we ask for beyond the plain API (exact lengths, counts of tokens) is given up, and noted.
    Raises `ConfigError` that says what the server said.
    """
    base, paths = _split(url, chat)
    headers = {"content-type": "application/json", "accept": "text/event-stream"}
    headers |= {"authorization": f"Bearer {key}"} if key else {}
    fields = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True}
    fields = {name: value for name, value in {**fields, **(more or {})}.items() if value is not None}
    model = model or _only_model(base, key)
    wishes = [Endpoint(base + path, model, path == CHAT, headers, fields) for path in paths]
    pool = HttpPool(base)
    try:
        endpoint = await _agree(pool, [candidate for wish in wishes for candidate in _candidates(wish)])
        return await _measure_scale(pool, endpoint)
    except OSError as error:
        raise ConfigError(f"{base} can't be asked: {error}. Is the server running there?") from error
    finally:
        pool.close()


async def _agree(pool: HttpPool, candidates: list[Endpoint]) -> Endpoint:
    """The first candidate that the server takes. Raises `ConfigError` with the server's first refusal."""
    prompt = Prompt(" ".join(words(np.random.default_rng(1), 8)), 2)
    refusal: RequestFailed | None = None
    for candidate in candidates:
        try:
            await ask(pool, candidate, prompt)
            return candidate
        except NoText:
            return candidate
        except RequestFailed as failure:
            refusal = refusal or failure
            if str(failure) not in _REFUSALS:
                break
    told = " ".join(getattr(refusal, "__notes__", []))
    raise ConfigError(f"{candidates[0].url} answers a plain request with {refusal}: {told}. Try one by hand")


def _candidates(endpoint: Endpoint) -> list[Endpoint]:
    """The endpoint, then with less and less that a plain server may not know."""
    found = [endpoint]
    for field, note in _LOSSES.items():
        last = found[-1]
        if field in last.fields:
            fields = {name: value for name, value in last.fields.items() if name != field}
            found.append(msgspec.structs.replace(last, fields=fields, notes=[*last.notes, note]))
    if endpoint.chat:
        renamed = [msgspec.structs.replace(each, length_field="max_completion_tokens") for each in found]
        found = [each for pair in zip(found, renamed, strict=True) for each in pair]
    return found


async def _measure_scale(pool: HttpPool, endpoint: Endpoint) -> Endpoint:
    """The endpoint with what made-up words count there, from the usage of two prompts."""
    random = np.random.default_rng(2)
    try:
        short, long = [
            await ask(pool, endpoint, Prompt(" ".join(words(random, count)), 1)) for count in (_SHORT, _LONG)
        ]
    except RequestFailed:
        return endpoint
    slope = (long.prompt_tokens - short.prompt_tokens) / (_LONG - _SHORT)
    if slope <= 0:
        note = "The server does not count prompts: one made-up word is taken for one token."
        return msgspec.structs.replace(endpoint, notes=[*endpoint.notes, note])
    scale = Scale(short.prompt_tokens - slope * _SHORT, slope)
    return msgspec.structs.replace(endpoint, scale=scale)


def _split(url: str, chat: bool) -> tuple[str, list[str]]:
    """The URL before `/v1`, and the paths to try."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f'"{url}" is not a URL of a server; write http://HOST:PORT')
    path = parts.path.rstrip("/")
    paths = [COMPLETIONS, CHAT]
    if chat or path.endswith(CHAT):
        paths = [CHAT]
    elif path.endswith(COMPLETIONS):
        paths = [COMPLETIONS]
    for tail in (CHAT, COMPLETIONS, "/v1"):
        path = path.removesuffix(tail)
    return urlunsplit(parts._replace(path=path, query="", fragment="")), paths


def _only_model(base: str, key: str) -> str:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        request = urllib.request.Request(f"{base}/v1/models", headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            models = sorted(entry["id"] for entry in msgspec.json.decode(reply.read())["data"])
    except urllib.error.HTTPError as error:
        told = error.read(_TOLD).decode(errors="replace")
        raise ConfigError(f"{base}/v1/models answers {error.code}: {told}. Name the model with --model") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{base}/v1/models can't be asked: {error}. Is the server running there?") from error
    if len(models) != 1:
        raise ConfigError(f"{base} serves these models: {', '.join(models) or 'none'}; choose one with --model")
    return str(models[0])
