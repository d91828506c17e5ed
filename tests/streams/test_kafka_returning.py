"""A partition that comes back to a reader with state: its state is where it was left, and so is the source."""

import pytest
from confluent_kafka import TopicPartition

from foretell.streams.ends import open_source
from foretell.streams.message import Message, Partition
from foretell.streams.protocol import Resume

NAME = "events/0"


class Group:
    """The consumer as a rebalance sees it: what the group has committed, and where it is told to begin."""

    def __init__(self, committed: int) -> None:
        self.committed_offset = committed
        self.begins: list[int] = []

    def committed(self, places, timeout):
        return [TopicPartition(p.topic, p.partition, self.committed_offset) for p in places]

    def incremental_assign(self, places):
        self.begins += [place.offset for place in places]


def assign(source, group: Group) -> None:
    source._assigned(group, [TopicPartition("events", 0)])


def settle(source, upto: int) -> None:
    """The messages before `upto` are polled and done."""
    partition = source._partitions.setdefault(("events", 0), Partition(NAME))
    source._open += 1
    source.settled([Message(b"", b"", partition, str(upto - 1), str(upto), 0)])


@pytest.fixture
def source():
    source = open_source("kafka://localhost:1/events")
    source._resume = Resume({}, {NAME: "10"})
    return source


def test_it_begins_where_the_state_was_opened(source):
    group = Group(committed=12)
    assign(source, group)
    assert group.begins == [10]


def test_it_goes_on_where_it_was_left_and_not_where_the_state_was_opened(source):
    group = Group(committed=12)
    assign(source, group)
    settle(source, 30)
    source._revoked(group, [TopicPartition("events", 0)])
    group.committed_offset = 50  # another reader had it meanwhile
    assign(source, group)
    assert group.begins == [10, 30]
    assert source._done[NAME] == "50"
