"""The written results: goals judged, text replaced between markers, a picture that stays inside its frame."""

import json
import xml.etree.ElementTree as ElementTree

from benchmarks import report
from benchmarks.environments import APPS
from benchmarks.goals import CEILING, Goal
from benchmarks.rounds import Record


def records(name: str, rates: list[float], clients: int = 64, workload: str = "tiny", p99: float = 2.0) -> list[Record]:
    return [Record(workload, name, clients, i, rate, 1.0, p99, 0) for i, rate in enumerate(rates)]


def test_a_goal_is_judged_by_the_median_of_ratios_within_rounds() -> None:
    found = records("foretell", [200.0, 20.0, 300.0]) + records("FastAPI", [100.0, 10.0, 100.0])
    judged = report.judge(found, Goal("tiny", "FastAPI", 64, 1.8))
    assert judged is not None
    assert (judged[0].middle, judged[1]) == (2.0, True)


def test_the_ceiling_has_no_clients_and_counts_for_all_of_them() -> None:
    found = records("foretell", [80.0], workload="image") + records(CEILING, [100.0], 0, "image")
    judged = report.judge(found, Goal("image", CEILING, 64, 0.9))
    assert judged is not None
    assert (judged[0].middle, judged[1]) == (0.8, False)


def test_a_latency_goal_wants_a_small_ratio() -> None:
    found = records("foretell", [1.0], 8, p99=5.0) + records("FastAPI", [1.0], 8, p99=10.0)
    judged = report.judge(found, Goal("tiny", "FastAPI", 8, 1.0, latency=True))
    assert judged is not None
    assert judged[1]


def test_what_was_not_measured_is_not_judged() -> None:
    assert report.judge(records("foretell", [1.0]), Goal("tiny", "mosec", 64, 0.9)) is None


def test_results_are_replaced_between_the_markers_and_the_rest_is_kept() -> None:
    first = report.insert("# Results\n\nRead this first.\n", "old")
    second = report.insert(first + "\nAnd this last.\n", "new")
    assert "old" not in second
    assert second.index("Read this first.") < second.index("new") < second.index("And this last.")


def test_a_missed_limit_and_a_skipped_server_are_said() -> None:
    facts = {"footprint gateway RSS, MB": 165.0, "footprint cold start to first answer 1, s": 1.2}
    text = report.markdown(records("foretell", [1.0]), facts, {}, {"Triton core": "no libpython"}, ["heading"])
    assert "165.00 (limit 150: **missed**)" in text
    assert "1.20 (limit 3: kept)" in text
    assert "- Triton core: no libpython" in text


def test_the_json_is_valid_even_where_a_generator_gives_no_latency() -> None:
    found = [Record("grpc", "foretell", 64, 0, 10.0, float("nan"), float("nan"), 0)]
    assert json.loads(report.as_json(found, {}, {}, {}))["records"][0]["p99_ms"] is None


def test_the_picture_is_well_formed_and_names_every_server() -> None:
    found = records("foretell", [900.0, 1000.0]) + records("A & B", [10.0, 20.0])
    root = ElementTree.fromstring(report.picture(found, "tiny", 64, "title"))
    words = [element.text for element in root.iter() if element.text and element.text.strip()]
    assert {"foretell", "A & B", "950/s"} <= set(words)


def test_every_peer_pins_every_package_and_its_app_compiles() -> None:
    folders = sorted(p.parent for p in APPS.glob("*/requirements.txt"))
    classic = {"fastapi", "litserve", "mlserver", "mosec", "triton"}
    assert {folder.name for folder in folders} == classic | {
        "aiperf",
        "litellm",
        "llamacpp",
        "openvino_genai",
        "quixstreams",
    }
    for folder in folders:
        assert all("==" in line for line in (folder / "requirements.txt").read_text().split())
        for app in folder.glob("*.py"):
            compile(app.read_text(), str(app), "exec")
