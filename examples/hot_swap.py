"""Move an alias while requests flow: the new version takes over, and no request fails."""

import tempfile
import time
from pathlib import Path

from examples.serving import ask, foretell, serving
from examples.tiny import weighted_sum

with tempfile.TemporaryDirectory() as folder:
    store = str(Path(folder, "store"))
    foretell("add", "sum", str(weighted_sum(Path(folder, "first.onnx"), 1, 1)), "--alias", "live", "--store", store)
    foretell("add", "sum", str(weighted_sum(Path(folder, "second.onnx"), 10, 10)), "--store", store)

    with serving("sum@live", "--store", store) as url:
        assert ask(url, "sum", [[1, 2]]) == {"version": "1", "y": [3.0]}
        print(foretell("alias", "sum", "live", "2", "--expect", "1", "--store", store).strip())
        answers = {"1": 0, "2": 0}
        until = time.monotonic() + 30
        while answers["2"] < 100 and time.monotonic() < until:
            answer = ask(url, "sum", [[1, 2]])
            assert answer["y"] == [3.0 if answer["version"] == "1" else 30.0]
            answers[answer["version"]] += 1
        print(f"answers of version 1: {answers['1']}, of version 2: {answers['2']}; none failed")
        assert answers["2"] == 100
