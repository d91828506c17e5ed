"""State goes with its partition: what a change-log knows of partitions that come to this worker. Knows no broker."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from foretell.core.errors import StateUnwritable, StreamError
from foretell.streams.message import Change
from foretell.streams.protocol import ChangeLog, Portion, StreamReset


class Memory(Protocol):
    """State that is written together with positions. `open` goes back to what was written last."""

    def open(self) -> Mapping[str, str]: ...

    def changes(self, positions: Mapping[str, str]) -> Sequence[Change]:
        """What `commit` will write, for a change-log."""

    def commit(self, positions: Mapping[str, str]) -> None: ...

    def restore(self, partition: str, log: Iterator[Portion], enough: str | None) -> str | None:
        """Make a partition what a change-log tells, at least up to `enough`. Returns up to where that is."""

    def close(self) -> None: ...


class Moves:
    """Opens a memory; `positions`: up to where it is written, of each partition that it has. `log`: the sink that logs
    its changes, None where nobody does and partitions do not bring their state along.
    """

    def __init__(self, memory: Memory, log: ChangeLog | None) -> None:
        self.positions = dict(memory.open())
        self._memory = memory
        self._log = log

    def restore(self, committed: Mapping[str, str | None]) -> Mapping[str, str]:
        """The positions, once state that is not where the group is has been made anew from the log: it was elsewhere
        meanwhile, or its worker died before it was written. Raises `StreamReset` where a retry may help.
        """
        for name, position in committed.items():
            if self._log is None or (position is not None and self.positions.get(name) == position):
                continue
            self.positions.pop(name, None)
            try:
                found = self._memory.restore(name, self._log.changes(name), position)
            except (StreamError, StateUnwritable) as error:
                raise StreamReset(f"the state of {name} was not restored: {error.message}") from None
            if found is not None:
                self.positions[name] = found
        return self.positions
