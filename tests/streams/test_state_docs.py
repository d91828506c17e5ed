"""The transforms of docs/state.md run as they stand."""

import re

import pytest

from tests.repo.repository import ROOT
from tests.streams.state_world import event, load, opened, run

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/state.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("block", "row"), list(zip(BLOCKS, [[5, 2, 3, 2, 2], [5, 2]], strict=True)))
def test_a_transform_of_the_page_runs(tmp_path, block, row):
    transform = load(tmp_path, block)
    features = run(opened(tmp_path, transform), transform, "t/0", [event(b"a", 1_000, 2), event(b"a", 1_000, 3)])
    assert features.failed == {}
    assert features.inputs["x"][1].tolist() == row
