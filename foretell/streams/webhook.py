"""HTTP as a sink: a POST for each answer. FORETELL_WEBHOOK_AUTHORIZATION is the Authorization header, if it is set."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, InvalidURL, TCPConnector

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.ends import EndUrl
from foretell.streams.message import Record, Refusal

PATIENCE_S = 30.0
"""How long an answer to a POST may take."""
WIDE = 16
"""Requests at a time; those of one key go one after the other."""
MOST_REASON = 300
MOST_WAIT_S = 300.0
"""A receiver that asks for a longer pause is asked again after this one."""
AGAIN = (401, 407, 408, 425, 429)
"""Refusals that pass: of these requests none is wrong in itself."""


class WebhookSink:
    """A URL. Effectively once with a receiver that honours the header Idempotency-Key, which is the same whenever an
    answer is posted again; at least once with others. Order is kept by key, and by partition where there are no keys.

    2xx takes an answer; 4xx refuses it for good, but for 401, 407, 408, 425 and 429, which are waited out like 5xx;
    nothing is posted before a Retry-After has passed.
    """

    remembers = True

    def __init__(self, url: str, owner: str, authorization: str = "") -> None:
        self._url = url
        self._owner = owner
        self._headers = {"Content-Type": "application/json", "User-Agent": "foretell"}
        if authorization:
            self._headers["Authorization"] = authorization
        self._session: ClientSession | None = None
        self._settled: dict[str, Refusal | None] = {}
        """What became of records of a call that failed; they are not posted again when it is tried again."""
        self._paused_until = 0.0

    async def open(self) -> Mapping[str, str]:
        """Nothing is sent; what the receiver holds is not known."""
        if self._session is None:
            timeout = ClientTimeout(total=PATIENCE_S)
            connector = TCPConnector(limit=WIDE)
            self._session = ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        return {}

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Every one was taken or refused. Raises `StreamError` at once while the receiver wants to be left alone."""
        pause_s = self._paused_until - time.monotonic()
        if pause_s > 0:
            raise StreamError(f"{self._url} asked to be left alone for another {pause_s:.1f} s")
        chains: dict[tuple[str, bytes], list[Record]] = {}
        for record in records:
            chains.setdefault((record.message.partition.name, record.message.key), []).append(record)
        gate = asyncio.Semaphore(WIDE)
        tasks = [asyncio.create_task(self._chain(chain, gate)) for chain in chains.values()]
        try:
            done = await asyncio.gather(*tasks, return_exceptions=True)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        for result in done:
            if isinstance(result, BaseException):
                raise result
        settled, self._settled = self._settled, {}
        found = [settled.get(record.idempotency_key) for record in records]
        return [refusal for refusal in found if refusal is not None]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _chain(self, records: list[Record], gate: asyncio.Semaphore) -> None:
        """One after the other; the first that fails ends it."""
        for record in records:
            if record.idempotency_key not in self._settled:
                async with gate:
                    self._settled[record.idempotency_key] = await self._post(record)

    async def _post(self, record: Record) -> Refusal | None:
        assert self._session is not None
        headers = {"Idempotency-Key": f'"{_plain(f"{self._owner} {record.idempotency_key}")}"'}
        try:
            async with self._session.post(
                self._url, data=record.value, headers=headers, allow_redirects=False
            ) as answer:
                status = answer.status
                if 200 <= status < 300:
                    await answer.read()
                    return None
                said = (await answer.content.read(MOST_REASON)).decode("utf-8", "replace").strip()
        except InvalidURL:
            raise ConfigError(f'"{self._url}" is no URL to post to') from None
        except (ClientError, OSError) as error:
            text = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise StreamError(f"{self._url}: {text}") from None
        reason = f"{self._url} answered {status}" + (f": {said}" if said else "")
        if 400 <= status < 500 and status not in AGAIN:
            return Refusal(record.message, reason)
        self._paused_until = max(self._paused_until, time.monotonic() + wait_s(answer.headers.get("Retry-After", "")))
        if 300 <= status < 400:
            reason += f'; it leads to "{answer.headers.get("Location", "")}", name that URL'
        raise StreamError(reason)


def make_source(url: EndUrl) -> Any:
    """There is none."""
    raise ConfigError(f'"{url.text}" is a sink; to send rows over HTTP use `foretell serve`')


def make_sink(url: EndUrl) -> WebhookSink:
    """`https://HOST/PATH`; a query is the receiver's."""
    if not url.host:
        raise ConfigError(f'"{url.text}" names no host')
    return WebhookSink(url.text, url.owner, os.environ.get("FORETELL_WEBHOOK_AUTHORIZATION", ""))


def wait_s(retry_after: str) -> float:
    """Seconds that a Retry-After asks for, as a number or a date; 0 where it is neither.

    >>> wait_s("2"), wait_s("Thu, 01 Jan 1970 00:00:00 GMT"), wait_s("soon"), wait_s("86400")
    (2.0, 0.0, 0.0, 300.0)
    """
    try:
        if retry_after.isascii() and retry_after.isdigit():
            asked = float(retry_after)
        else:
            asked = parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(asked, 0.0), MOST_WAIT_S)


def _plain(text: str) -> str:
    r"""As a header may hold it, in quotes.

    >>> _plain('a"b\n')
    'a%22b%0A'
    """
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "".join(f"%{b:02X}" for b in c.encode()) for c in text)
