"""A replica's loop around a generator: requests and cancellations come in between steps, events go out after each.

Knows frames and the `Generator` contract; neither how the generator was made nor who is on the other end.
"""

import socket
import time

from foretell.core.clock import Clock
from foretell.core.errors import ForetellError
from foretell.core.generation import Event, Finished, GenerateRequest, Stops
from foretell.core.model import Generator
from foretell.fleet import wire
from foretell.fleet.faults import describe
from foretell.fleet.memory import ResidentBytes

INTAKE_S = 0.02
"""So long running streams wait for requests to be taken in (their prompts cut into tokens, their grammars compiled);
what is left of a burst is taken in after the next step."""

WARMUP = GenerateRequest("Hello", stops=Stops(max_tokens=4, ignore_eos=True))


def warm_up(generator: Generator) -> None:
    """Run a short generation, so that the first request finds everything allocated. Raises what it met."""
    generator.submit(0, WARMUP)
    while True:
        for _, event in generator.step():
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Finished):
                return


class GenerateLoop:
    """`run` until the gateway closes the socket. Waits only while there is nothing to do."""

    def __init__(self, sock: socket.socket, generator: Generator, clock: Clock = time.monotonic) -> None:
        self._sock = sock
        self._generator = generator
        self._clock = clock
        self._reader = wire.FrameReader(reuse=True)
        self._rss = ResidentBytes()
        self._refused: list[tuple[int, wire.Fault]] = []
        self._load = generator.load()

    def run(self) -> None:
        """Returns when the gateway has hung up. An error of the generator as a whole (its state is then unknown) is
        sent as `Failed`, and ends the loop.
        """
        try:
            while self._take_in():
                self._step()
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            send(self._sock, wire.frame(wire.Failed(*describe(error))))

    def _take_in(self) -> bool:
        """Handle the frames that are there, for no longer than `INTAKE_S` while something runs; wait for one if there
        is nothing else to do. False: hung up."""
        until = self._clock() + INTAKE_S
        while True:
            while (received := self._reader.next()) is not None:
                self._handle(received[0])
                if self._clock() >= until and self._busy():
                    return True
            idle = not self._busy()
            if idle and self._pending():
                return True
            try:
                count = self._sock.recv_into(self._reader.room(), 0, 0 if idle else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            if not count:
                return False
            self._reader.received(count)

    def _busy(self) -> bool:
        load = self._generator.load()
        return bool(load.running or load.waiting)

    def _pending(self) -> bool:
        """Whether there is something to tell although nothing runs: a refusal, or that a cancellation freed memory."""
        return bool(self._refused) or self._generator.load() != self._load

    def _handle(self, header: wire.Header) -> None:
        if isinstance(header, wire.Cancel):
            self._generator.cancel(header.number)
            return
        assert isinstance(header, wire.Generate)
        try:
            self._generator.submit(header.number, wire.unpack_request(header.request))
        except Exception as error:
            # Whatever it is, it is about this request alone.
            self._generator.cancel(header.number)
            self._refused.append((header.number, _fault(error)))

    def _step(self) -> None:
        events: list[tuple[int, Event | wire.Fault]] = [*self._refused]
        self._refused.clear()
        compute_s = 0.0
        if self._busy():
            began = self._clock()
            came = self._generator.step()
            compute_s = self._clock() - began
            events += [(n, _fault(event) if isinstance(event, ForetellError) else event) for n, event in came]
        self._load = self._generator.load()
        send(self._sock, wire.frame(wire.Events(events, compute_s, self._load, self._rss.now_and_then())))


def send(sock: socket.socket, buffers: list[wire.Buffer]) -> None:
    """Write the buffers of a frame; blocks while the gateway is behind."""
    total = sum(map(len, buffers))
    sent = sock.sendmsg(buffers)
    if sent < total:
        sock.sendall(b"".join(buffers)[sent:])


def _fault(error: Exception) -> wire.Fault:
    return wire.Fault(*describe(error), getattr(error, "retry_after_s", 0.0))
