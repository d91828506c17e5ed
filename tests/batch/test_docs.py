"""The page about batch jobs shows code that works."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from tests.batch.conftest import linear, read

PAGE = Path(__file__).resolve().parents[2] / "docs/batch.md"


def test_the_python_of_the_page_runs_as_it_stands(world, monkeypatch, capsys):
    world.add("digits", linear(world.folder / "digits.onnx"))
    monkeypatch.setenv("FORETELL_HOME", str(world.folder / "home"))
    monkeypatch.chdir(world.folder)
    pa.parquet.write_table(pa.table({"X": [[1.0, 2.0], [3.0, 4.0]]}), "rows.parquet")
    (script,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(script, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.startswith("2 ")
    assert read(Path("out")).column("y").to_pylist() == [21.0, 43.0]
