"""A subject of NATS JetStream as a sink."""

import re
from collections.abc import Mapping, Sequence

from nats.js.errors import NotFoundError

from foretell.core.errors import ConfigError, StreamError
from foretell.streams.message import Record, Refusal
from foretell.streams.nats_client import ID, KEY, NatsClient

TOO_LARGE, NOT_NEXT = 10054, 10070
"""Codes of the server: of a message, and of one that is not to be stored behind what is there."""
OWNER, SOURCE, NEXT = "Foretell-Stream", "Foretell-Source", "Foretell-Next"
Headed = list[tuple[Record, dict[str, str]]]
_ROOM = 512
"""Bytes that headers may take of what the server allows for a message."""
_PRINTABLE = re.compile(rb"[!-~]{1,256}")


class NatsSink:
    """A subject that a stream stores. Effectively once: the server drops an answer whose Nats-Msg-Id it has seen within
    its duplicate window (two minutes unless set), and at start the last answer says up to where they go; from a source
    of several partitions, what is older than the window and of another partition than the last is at least once.
    """

    remembers = True

    def __init__(self, client: NatsClient, subject: str, owner: str) -> None:
        self._client = client
        self._subject = subject
        self._owner = owner
        self._stream = ""
        self._most_bytes = 0
        self._unsure = False
        """Whether the last call failed, so that what is stored is not known."""

    async def open(self) -> Mapping[str, str]:
        """Where the last answer of the subject stands. Raises `ConfigError` if no stream stores the subject."""
        js = await self._client.connect()
        with self._client.told():
            try:
                self._stream = await js.find_stream_name_by_subject(self._subject)
            except NotFoundError:
                wanted = f'no stream stores the subject "{self._subject}"'
                if self._stream:
                    raise StreamError(wanted) from None
                raise ConfigError(f"{wanted}; make one, then answers cannot be lost") from None
            limit = (await js.stream_info(self._stream)).config.max_msg_size or -1
            allowed = self._client.nats.max_payload
            self._most_bytes = min(allowed, limit if limit > 0 else allowed) - _ROOM
            try:
                last = await js.get_last_msg(self._stream, self._subject)
            except NotFoundError:
                return {}
        headers = last.headers or {}
        if headers.get(OWNER, "") != self._owner:
            return {}
        return {headers[SOURCE]: headers[NEXT]} if SOURCE in headers and NEXT in headers else {}

    async def publish(self, records: Sequence[Record]) -> list[Refusal]:
        """Stored, in order: one is stored only behind the one before, so what follows a refused one is refused, too."""
        await self._client.connect()
        refused: list[Refusal] = []
        stuck: dict[str, str] = {}
        left: Headed = []
        for record in records:
            message = record.message
            if len(record.value) > self._most_bytes:
                reason = f"the answer has {len(record.value):,} bytes, the sink takes {self._most_bytes:,}"
                refused.append(Refusal(message, reason))
                # It is no dead letter yet, so a restart has to come back to it.
                stuck.setdefault(message.partition.origin, message.position)
            else:
                left.append((record, self._headers(record, stuck)))
        if self._unsure:
            left = await self._behind_last(left)
        self._unsure = True
        while left:
            with self._client.told():
                sent = [(record.value, headers) for record, headers in left]
                at, fault = await self._client.store_in_order(self._subject, sent)
            left = left[at:]
            if fault.err_code == TOO_LARGE:
                reason = f"the answer is too large for the sink: {fault.description}"
                refused.append(Refusal(left.pop(0)[0].message, reason))
            elif left and fault.err_code != NOT_NEXT:  # another publisher came in between: go on behind it
                raise StreamError(f'"{self._subject}" does not take an answer: {fault.description}')
        self._unsure = False
        return refused

    async def close(self) -> None:
        await self._client.close()

    async def _behind_last(self, records: Headed) -> Headed:
        """What the subject does not hold yet, if the last call failed; it may have been longer ago than the server's
        window reaches back.
        """
        js = await self._client.connect()
        with self._client.told():
            try:
                last = ((await js.get_last_msg(self._stream, self._subject)).headers or {}).get(ID)
            except NotFoundError:
                return records
        at = next((at for at, (_, headers) in enumerate(records) if headers[ID] == last), -1)
        return records[at + 1 :]

    def _headers(self, record: Record, stuck: Mapping[str, str]) -> dict[str, str]:
        message = record.message
        headers = {
            ID: f"{self._subject} {self._owner} {record.idempotency_key}",
            OWNER: self._owner,
            SOURCE: message.partition.origin,
            NEXT: stuck.get(message.partition.origin, message.next),
        }
        if _PRINTABLE.fullmatch(message.key):
            headers[KEY] = message.key.decode()
        return headers
