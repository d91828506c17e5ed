"""The books of KV memory: which slots are held, and how many tokens each may hold. Knows no device and no sequence."""

import heapq

PAGE = 16
"""Slots grow by so many tokens at a time: about what one page of memory holds of one head, and a rare event."""


class KvCache:
    """`slots` slots of at most `context` tokens each, together at most `capacity` tokens.

    Held slots are kept in front by `compact`. Freed ones are filled lowest first, so a sequence that enters where
    another left spares a move.
    """

    def __init__(self, slots: int, context: int, capacity: int | None = None) -> None:
        self.slots = slots
        self.context = context
        self.capacity = slots * context if capacity is None else min(capacity, slots * context)
        self.reserved = 0
        self._held = [0] * slots
        self._free = list(range(slots))

    @property
    def longest(self) -> int:
        """The most tokens that a slot can hold when it is the only one."""
        return self.context if self.capacity >= self.context else self.capacity // PAGE * PAGE

    @property
    def room(self) -> int:
        """Tokens that are not reserved."""
        return self.capacity - self.reserved

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def pages(self, tokens: int) -> int:
        """`tokens` as they are reserved: in whole pages, no more than the context."""
        return min(-(-tokens // PAGE) * PAGE, self.context)

    def take(self, tokens: int) -> int:
        """The lowest free slot, with memory for `tokens`. The caller has seen that there is room."""
        slot = heapq.heappop(self._free)
        self._held[slot] = self.pages(max(tokens, 1))
        self.reserved += self._held[slot]
        return slot

    def grow(self, slot: int, tokens: int) -> bool:
        """Let the slot hold `tokens`; False, and nothing done, when memory is out."""
        more = self.pages(tokens) - self._held[slot]
        if more <= 0:
            return True
        if more > self.room:
            return False
        self._held[slot] += more
        self.reserved += more
        return True

    def give_back(self, slot: int) -> None:
        self.reserved -= self._held[slot]
        self._held[slot] = 0
        heapq.heappush(self._free, slot)

    def compact(self) -> list[tuple[int, int]]:
        """Move held slots into holes until the held ones are the first; the moves (source, target), to be done."""
        moves = []
        used = self.slots - len(self._free)
        if self._free and self._free[0] < used:
            sources = [slot for slot in range(self.slots - 1, used - 1, -1) if self._held[slot]]
            for source in sources:
                target = heapq.heappop(self._free)
                self._held[target], self._held[source] = self._held[source], 0
                heapq.heappush(self._free, source)
                moves.append((source, target))
        return moves

    def check(self) -> None:
        """Raise AssertionError unless the books balance."""
        free = set(self._free)
        assert len(free) == len(self._free), "a slot is free twice"
        assert free == {slot for slot, held in enumerate(self._held) if not held}, "free + held slots are not all slots"
        assert self.reserved == sum(self._held) <= self.capacity, "reserved tokens are not those of the slots"
        assert all(held <= self.context for held in self._held), "a slot holds more than its context"
