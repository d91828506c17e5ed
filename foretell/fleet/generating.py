"""The lane of a replica that generates: carries requests to it as they come, and the events of its steps back."""

import time

from foretell.core.generation import Load
from foretell.fleet import wire
from foretell.fleet.batches import Executed
from foretell.fleet.faults import revive
from foretell.fleet.replica import Replica
from foretell.scheduling.generations import Generations, Stream


class GenerationLane:
    """Holds any number of streams; the replica orders them. `load` is what it said of itself after its last step.
    `lanes` is the router's list, kept by the lanes.
    """

    def __init__(
        self, replica: Replica, generations: Generations, lanes: "list[GenerationLane]", executed: Executed
    ) -> None:
        self.streams: dict[int, Stream] = {}
        self.load = Load()
        self._replica = replica
        self._generations = generations
        self._lanes = lanes
        self._executed = executed
        self._stepped_at = 0.0

    @property
    def busy_since(self) -> float | None:
        return self._stepped_at if self.streams else None

    def join(self, ready: wire.Ready) -> None:
        self.load = ready.load
        self._lanes.append(self)
        self._generations.resume()

    def leave(self) -> None:
        if self in self._lanes:
            self._lanes.remove(self)

    def send(self, stream: Stream) -> None:
        frame = wire.frame(wire.Generate(stream.number, wire.pack_request(stream.request)))
        if not self.streams:
            self._stepped_at = time.monotonic()
        self._replica.write(frame)

    def cancel(self, stream: Stream) -> None:
        if self._replica.connected:
            self._replica.write(wire.frame(wire.Cancel(stream.number)))

    def handle(self, header: wire.Header, body: memoryview) -> None:
        if isinstance(header, wire.Failed):
            self._replica.kill(header.message)  # it is ending by itself; now we know why
            return
        assert isinstance(header, wire.Events)
        self._stepped_at = time.monotonic()
        self.load = header.load
        self._replica.rss = header.rss or self._replica.rss
        if header.compute_s:
            self._generations.stepped(header.compute_s)
            self._executed(len({number for number, _ in header.events}), header.compute_s)
        for number, event in header.events:
            stream = self.streams.get(number)  # None: cancelled while this was on its way
            if stream is None:
                continue
            if isinstance(event, wire.Fault):
                self._generations.heard(stream, revive(event.error, event.message, event.retry_after_s))
            else:
                self._generations.heard(stream, event)

    def lost(self, reason: str) -> None:
        self._generations.lost(self, reason)
