"""One package, three modes, the same answers: bit for bit on the same rows in the same batch, on every demo model."""

import asyncio
import base64
import json

import numpy as np
import pytest

from foretell.app.streams import Reads, Route, StreamService, StreamSpec
from tests.batch.test_same_answers import DEMO, asked, matrix, prepared
from tests.streams.conftest import lines


def in_json(value) -> object:
    """As docs/streams.md says: bytes as base64."""
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value.tolist()


def streamed(world, name: str, column: str, values: list) -> list[dict]:
    """The outputs of all rows, which come as one micro-batch."""
    source = world.folder / "in.jsonl"
    source.write_text("".join(json.dumps({column: in_json(value)}) + "\n" for value in values))
    route = Route(str(source), str(world.folder / "out.jsonl"), str(world.folder / "dead.jsonl"))
    asyncio.run(StreamService(world.config, world.store, StreamSpec(name, route, Reads())).run())
    assert not lines(world.folder / "dead.jsonl")
    return [answer["outputs"] for answer in lines(world.folder / "out.jsonl")]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", DEMO)
def test_a_stream_a_job_and_the_server_give_the_same_answers(world, name):
    settings, column, values = prepared(world, name)
    answers = streamed(world, name, column, values)
    world.batch(name, world.table("in.parquet", id=np.arange(len(values)), **{column: values}), batch_rows=len(values))
    job, online = world.rows(), asked(world, settings, name, column, values)
    assert len(answers) == len(values)
    for output, expected in online.items():
        found = [answer[output] for answer in answers]
        np.testing.assert_array_equal(np.array(found, expected.dtype if expected.dtype.kind == "f" else None), expected)
        np.testing.assert_array_equal(matrix(job.column(output)), expected)
