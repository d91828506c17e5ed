"""Frames between gateway and replica: a fixed prelude, a msgpack header, raw tensor bytes.

    prelude   u32 header length, u64 body length (little-endian)
    header    msgpack array, then zero bytes up to the next multiple of ALIGN
    body      tensors, each padded to ALIGN; in a batch, the rows of its requests one after the other

A replica that predicts answers each `Run` with `Done` or `Failed`. One that generates takes `Generate` and `Cancel`
and sends one `Events` a step; `Failed` is the last thing it says.

The rows of several requests become one contiguous tensor by being sent one after the other: the sender
gathers them with a vectored write, the receiver reads them into one buffer and views it.
"""

import struct
from collections.abc import Iterable, Sequence

import msgspec

from foretell.core.errors import InvalidInput
from foretell.core.generation import Event, GenerateRequest, Load
from foretell.core.tensor import Tensors, datatype_of, from_wire, to_wire

PRELUDE = struct.Struct("<IQ")
ALIGN = 16
READ_AHEAD = 64 * 1024

Buffer = bytes | memoryview


class TensorHeader(msgspec.Struct, array_like=True, gc=False):
    name: str
    datatype: str
    shape: tuple[int, ...]
    nbytes: int


class Ready(msgspec.Struct, tag=0, array_like=True):
    """Replica → gateway, once: loaded and warm. `warmup`: (rows, seconds) of the warm-up batches. `load`: what a
    generator holds, which is nothing yet, of what it could hold.
    """

    load_s: float
    warmup: list[tuple[int, float]]
    load: Load = msgspec.field(default_factory=Load)


class Run(msgspec.Struct, tag=1, array_like=True):
    """Gateway → replica: run this batch."""

    rows: int
    tensors: list[TensorHeader]


class Done(msgspec.Struct, tag=2, array_like=True):
    """Replica → gateway: the outputs. `rss` is the replica's resident bytes, measured now and then (else 0)."""

    tensors: list[TensorHeader]
    compute_s: float
    rss: int


class Failed(msgspec.Struct, tag=3, array_like=True):
    """Replica → gateway: the model raised (or, before Ready, could not be loaded). `error` names the class."""

    error: str
    message: str


class Generate(msgspec.Struct, tag=4, array_like=True):
    """Gateway → replica: take in a request (`pack_request`) under a number that was not used before."""

    number: int
    request: msgspec.Raw


class Cancel(msgspec.Struct, tag=5, array_like=True):
    """Gateway → replica: nobody waits for this one any more."""

    number: int


class Fault(msgspec.Struct, tag=4, array_like=True, gc=False):
    """Stands where an event would: the request failed as a whole. `retry_after_s` is for `Overloaded`."""

    error: str
    message: str
    retry_after_s: float = 0.0


class Events(msgspec.Struct, tag=6, array_like=True):
    """Replica → gateway: what came of one step, by request; also of none (a prompt is being read, or all is idle).

    `compute_s` is how long the step ran, `load` what the generator holds after it, `rss` as in `Done`.
    """

    events: list[tuple[int, Event | Fault]]
    compute_s: float
    load: Load
    rss: int


Header = Ready | Run | Done | Failed | Generate | Cancel | Events

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)
_request_decoder = msgspec.msgpack.Decoder(GenerateRequest)
_PADS = [bytes(n) for n in range(ALIGN)]


def frame(header: Header, body: Sequence[Buffer] = ()) -> list[Buffer]:
    """The buffers of one frame, to be written in order."""
    encoded = _encoder.encode(header)
    pad = -(PRELUDE.size + len(encoded)) % ALIGN
    total = sum(map(len, body))
    return [PRELUDE.pack(len(encoded), total) + encoded + _PADS[pad], *body]


def pack_request(request: GenerateRequest) -> msgspec.Raw:
    """A request on its way into a `Generate`. Raises `InvalidInput` if it holds what no frame can (half a
    surrogate pair, an integer beyond 64 bits).
    """
    try:
        return msgspec.Raw(_encoder.encode(request))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the request cannot be passed on: {error}; send valid Unicode and 64-bit numbers") from None


def unpack_request(raw: msgspec.Raw) -> GenerateRequest:
    """Decoded apart from its frame, so that a request of the wrong types fails alone. Raises `InvalidInput`."""
    try:
        return _request_decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the request is not what a generation takes: {error}") from None


def tensors_body(groups: Sequence[Tensors]) -> tuple[list[TensorHeader], list[Buffer]]:
    """Describe and gather the tensors of one or more requests of equal shape as one batch, copying no rows."""
    headers: list[TensorHeader] = []
    body: list[Buffer] = []
    for name, first in groups[0].items():
        rows = 0
        nbytes = 0
        for group in groups:
            array = group[name]
            raw = to_wire(array)
            body.append(raw)
            nbytes += len(raw)
            rows += array.shape[0] if array.shape else 1
        shape = (rows, *first.shape[1:]) if first.shape else ()
        headers.append(TensorHeader(name, datatype_of(first), shape, nbytes))
        if pad := -nbytes % ALIGN:
            body.append(_PADS[pad])
    return headers, body


def read_tensors(headers: Iterable[TensorHeader], body: memoryview) -> Tensors:
    """View the tensors of a frame's body (BYTES are copied out). The views live as long as the buffer."""
    tensors: Tensors = {}
    at = 0
    for header in headers:
        end = at + header.nbytes
        tensors[header.name] = from_wire(body[at:end], header.datatype, header.shape, header.name)
        at = end + (-header.nbytes % ALIGN)
    return tensors


class FrameReader:
    """Cuts a byte stream into frames, without I/O: take `next()` until it is None, then receive into `room()`.

    The bodies it returns are views of its buffer. With `reuse` they are valid until the following `next()`
    (the replica, which is done with a batch before it reads another); without, as long as anybody holds them.
    """

    def __init__(self, *, reuse: bool = False) -> None:
        self._reuse = reuse
        self._view = memoryview(bytearray(READ_AHEAD))
        self._start = self._end = 0
        self._need = PRELUDE.size
        self._header_length = -1
        self._body_at = 0

    def room(self) -> memoryview:
        """Where the next bytes belong; never empty once `next()` has returned None."""
        target = self._start + self._need
        if target > len(self._view) or self._end == len(self._view):
            fits = self._reuse and self._need <= len(self._view)
            self._move(self._view if fits else memoryview(bytearray(max(READ_AHEAD, self._need))))
            target = self._need
        return self._view[self._end : max(target, min(len(self._view), self._end + READ_AHEAD))]

    def received(self, count: int) -> None:
        self._end += count

    def next(self) -> tuple[Header, memoryview] | None:
        """The next whole frame, or None until more bytes came."""
        have = self._end - self._start
        if self._header_length < 0:
            if have < PRELUDE.size:
                return None
            self._header_length, body_length = PRELUDE.unpack_from(self._view, self._start)
            self._body_at = _aligned(PRELUDE.size + self._header_length)
            self._need = self._body_at + body_length
        if have < self._need:
            return None
        start = self._start
        header = _decoder.decode(self._view[start + PRELUDE.size : start + PRELUDE.size + self._header_length])
        body = self._view[start + self._body_at : start + self._need]
        self._start += self._need
        self._need, self._header_length = PRELUDE.size, -1
        if self._reuse and self._start == self._end:
            self._start = self._end = 0
        return header, body

    def _move(self, target: memoryview) -> None:
        have = self._end - self._start
        target[:have] = bytes(self._view[self._start : self._end])
        self._view, self._start, self._end = target, 0, have


def _aligned(size: int) -> int:
    return size + (-size % ALIGN)
