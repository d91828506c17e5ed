"""Ends of a stream in memory that outlive a processor, and can fail after any of its steps."""

from collections.abc import Callable, Collection

from foretell.streams.answering import Answered
from foretell.streams.message import Message, Partition, Record, Refusal, later, positions
from foretell.streams.protocol import Resume, Room, is_replayed


class Broker:
    """What survives a crash: messages, answers, letters, positions, state. `fault` is raised after the steps `faults`,
    counted over all processors.
    """

    def __init__(
        self, counts: dict[str, int], faults: Collection[int] = (), fault: Callable[[], Exception] = Exception
    ) -> None:
        self.counts = counts
        self.out: list[tuple[str, int, bytes]] = []
        self.buried: set[tuple[str, int]] = set()
        self.committed: dict[str, str] = {}
        self.sums: dict[str, int] = {}
        self.positions: dict[str, str] = {}
        self.steps = 0
        self.faults, self.fault = faults, fault

    def step(self) -> None:
        """Something was done."""
        self.steps += 1
        if self.steps in self.faults:
            raise self.fault()

    def commit(self, messages) -> None:
        for name, position in positions(messages).items():
            self.committed[name] = later(position, self.committed.get(name))

    def answers(self, name: str) -> list[tuple[int, bytes]]:
        return [(position, value) for partition, position, value in self.out if partition == name]


class MemorySource:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def open(self, resume: Resume) -> None:
        self.partitions = {name: Partition(name) for name in self.broker.counts}
        committed = self.broker.committed
        self.done = {name: resume.done(name, committed.get(name)) for name in self.partitions}
        self.at = {name: int(resume.start(name, committed.get(name)) or 0) for name in self.partitions}
        self.broker.step()

    async def poll(self, room: Room) -> list[Message] | None:
        found: list[Message] = []
        for name, count in self.broker.counts.items():
            for at in range(self.at[name], min(self.at[name] + room.messages - len(found), count)):
                replayed = is_replayed(str(at), self.done[name])
                found.append(Message(b"%d" % at, b"", self.partitions[name], str(at), str(at + 1), 0, replayed))
                self.at[name] = at + 1
        self.broker.step()
        return found or None

    async def commit(self, messages) -> None:
        self.broker.commit(messages)
        self.broker.step()

    def lag(self) -> int:
        return 0

    async def close(self) -> None:
        pass


class MemorySink:
    """With `remembers` it says up to where it holds answers, as a file does."""

    def __init__(self, broker: Broker, remembers: bool) -> None:
        self.broker, self.remembers = broker, remembers

    async def open(self) -> dict[str, str]:
        self.broker.step()
        return {name: str(position + 1) for name, position, _ in self.broker.out} if self.remembers else {}

    async def publish(self, records: list[Record]) -> list[Refusal]:
        for record in records:
            self._store(record)
            self.broker.step()
        return []

    async def close(self) -> None:
        pass

    def _store(self, record: Record) -> None:
        message = record.message
        self.broker.out.append((message.partition.name, int(message.position), record.value))


class MemoryTransactions(MemorySink):
    def joins(self, source) -> bool:
        return True

    async def transact(self, records, source, messages, changes=()) -> list[Refusal]:
        for record in records:
            self._store(record)
        self.broker.commit(messages)
        self.broker.step()
        return []


class MemoryLetters(MemorySink):
    def _store(self, record: Record) -> None:
        self.broker.buried.add((record.message.partition.name, int(record.message.position)))


class Doubling:
    """Answers without state; every fifth message cannot be answered."""

    pipelined = True

    async def answer(self, messages) -> Answered:
        made = Answered([], [])
        for message in messages:
            number = int(message.value)
            if number % 5 == 4:
                made.refused.append(Refusal(message, "a fifth"))
            else:
                made.records.append(Record(self.value(message, number), message))
        return Answered([record for record in made.records if not record.message.replayed], made.refused)

    def value(self, message: Message, number: int) -> bytes:
        return b"%d" % (2 * number)


class Summing(Doubling):
    """The sum of a partition so far; also the processor's memory, which is written to the broker's state."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def value(self, message: Message, number: int) -> bytes:
        self.sums[message.partition.name] = self.sums.get(message.partition.name, 0) + number
        return b"%d" % self.sums[message.partition.name]

    def open(self) -> dict[str, str]:
        self.sums = dict(self.broker.sums)
        self.broker.step()
        return dict(self.broker.positions)

    def changes(self, positions):
        return []

    def commit(self, positions) -> None:
        self.broker.sums = dict(self.sums)
        self.broker.positions |= positions
        self.broker.step()

    def close(self) -> None:
        self.sums = {}
