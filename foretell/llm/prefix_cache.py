"""Keys and values of prompts seen before, so that nobody computes them twice. Knows no slot and no device.

A radix tree over blocks of tokens (after SGLang's RadixAttention, Zheng et al. 2024): a node is one whole block, its
path from the root is the text before it. The least recently used leaf goes first when the byte budget is full.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from foretell.llm.executors.base import Block

Read = Callable[[int, int], Block]
"""Copies the positions [start, stop) of the sequence that is being saved."""


class PrefixCache(Protocol):
    """What the engine asks of it. `block_tokens` 0: nothing is ever kept."""

    block_tokens: int
    hit_tokens: int
    missed_tokens: int

    @property
    def tokens(self) -> int:
        """How many tokens it holds."""

    def match(self, tokens: Sequence[int], most: int) -> list[Block]:
        """The blocks of the longest known prefix of `tokens`, of at most `most` tokens."""

    def save(self, tokens: Sequence[int], read: Read) -> None:
        """Keep the whole blocks of `tokens`; `read` is called for those that are not there yet."""

    def count(self, hit: int, missed: int) -> None:
        """A prompt's tokens, found and not found."""

    def check(self) -> None:
        """Raise AssertionError unless the books balance."""


class NoPrefixCache:
    """Keeps nothing."""

    block_tokens = 0
    tokens = 0
    hit_tokens = 0
    missed_tokens = 0

    def match(self, tokens: Sequence[int], most: int) -> list[Block]:
        return []

    def save(self, tokens: Sequence[int], read: Read) -> None:
        pass

    def count(self, hit: int, missed: int) -> None:
        pass

    def check(self) -> None:
        pass


class _Root:
    """Where every text begins."""

    __slots__ = ("children",)

    def __init__(self) -> None:
        self.children: dict[tuple[int, ...], _Node] = {}


class _Node(_Root):
    """One block; `key` are its tokens, by which its parent knows it."""

    __slots__ = ("block", "key", "parent")

    def __init__(self, parent: _Root, key: tuple[int, ...], block: Block) -> None:
        super().__init__()
        self.parent = parent
        self.key = key
        self.block = block


class RadixCache:
    """At most `capacity` bytes of blocks of `block_tokens` tokens, `token_bytes` each.

    `tokens` and `nbytes` are what it holds now; `hit_tokens` and `missed_tokens` are totals over all prompts.
    """

    def __init__(self, capacity: int, token_bytes: int, block_tokens: int = 32) -> None:
        self.capacity = capacity
        self.block_tokens = block_tokens
        self.nbytes = 0
        self.hit_tokens = 0
        self.missed_tokens = 0
        self._expected = token_bytes * block_tokens
        self._root = _Root()
        # Least recently used first. A path is always touched from its end to its beginning, so a node is never older
        # than those below it, and the first one here is a leaf.
        self._nodes: OrderedDict[_Node, None] = OrderedDict()

    @property
    def tokens(self) -> int:
        return len(self._nodes) * self.block_tokens

    def match(self, tokens: Sequence[int], most: int) -> list[Block]:
        path = self._find(tokens, most)
        self._touch(path)
        return [node.block for node in path]

    def save(self, tokens: Sequence[int], read: Read) -> None:
        path = self._find(tokens, len(tokens))
        self._touch(path)
        size = self.block_tokens
        kept = set(path)
        for start in range(len(path) * size, len(tokens) - size + 1, size):
            if not self._make_room(self._expected, kept):
                break
            block = read(start, start + size)
            if not self._make_room(block.nbytes, kept):
                break
            parent = path[-1] if path else self._root
            key = tuple(tokens[start : start + size])
            node = parent.children[key] = _Node(parent, key, block)
            self._nodes[node] = None
            self.nbytes += block.nbytes
            path.append(node)
            kept.add(node)
        self._touch(path)

    def count(self, hit: int, missed: int) -> None:
        self.hit_tokens += hit
        self.missed_tokens += missed

    def check(self) -> None:
        assert self.nbytes == sum(node.block.nbytes for node in self._nodes), "bytes are miscounted"
        assert self.nbytes <= self.capacity, "the cache is over its budget"
        reached, stack = 0, list(self._root.children.values())
        while stack:
            node = stack.pop()
            reached += 1
            assert node in self._nodes, "a block is in the tree and not in the books"
            stack.extend(node.children.values())
        assert reached == len(self._nodes), "a block is in the books and not in the tree"

    def _find(self, tokens: Sequence[int], most: int) -> list[_Node]:
        path: list[_Node] = []
        node: _Root = self._root
        size = self.block_tokens
        for start in range(0, min(most, len(tokens)) - size + 1, size):
            child = node.children.get(tuple(tokens[start : start + size]))
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._nodes[node] = None
            self._nodes.move_to_end(node)

    def _make_room(self, nbytes: int, kept: set[_Node]) -> bool:
        """Evict until `nbytes` fit; False if one of `kept`, which were touched last, would have to go."""
        while self.nbytes + nbytes > self.capacity:
            oldest = next(iter(self._nodes), None)
            if oldest is None or oldest in kept:
                return False
            del self._nodes[oldest]
            del oldest.parent.children[oldest.key]
            self.nbytes -= oldest.block.nbytes
        return True
