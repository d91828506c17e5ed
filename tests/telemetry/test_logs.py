"""The access log says what happened to each request; the process log suits who reads it."""

import io
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from foretell.core.errors import ConfigError
from foretell.core.observation import TokenUse
from foretell.telemetry.access import AccessLog, open_access_log
from foretell.telemetry.log import setup_logging
from foretell.telemetry.metrics import Metrics
from foretell.telemetry.parquet import ParquetWriter, read_observations
from foretell.telemetry.sink import Detached, Sink
from tests.telemetry.observations import observation


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    handlers, level, own = list(root.handlers), root.level, logging.getLogger("foretell").level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("foretell").setLevel(own)


def test_each_request_is_one_json_line():
    out = io.BytesIO()
    AccessLog(out).consume([observation(), observation(request_id='"quoted"\n', outcome="failed", error="boom")])
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first == {
        "ts": "2026-09-22T12:00:00.000Z", "protocol": "http", "model": "digits", "version": "3", "id": "r1",
        "outcome": "done", "rows": 2, "total_ms": 3.1, "queue_ms": 1.0, "compute_ms": 2.0,
    }  # fmt: skip
    assert (second["id"], second["outcome"], second["error"]) == ('"quoted"\n', "failed", "boom")


def test_the_line_of_a_generation_tells_its_tokens():
    out = io.BytesIO()
    use = TokenUse(100, 60, 20, first_token_s=0.2, gaps=np.array([0.01, 0.03], np.float32).tobytes())
    AccessLog(out).consume([observation(tokens=use), observation()])
    first, second = map(json.loads, out.getvalue().splitlines())
    assert {key: first[key] for key in first.keys() - second.keys()} == {
        "prompt_tokens": 100, "cached_tokens": 60, "completion_tokens": 20, "first_token_ms": 200.0,
        "inter_token_ms": 20.0,
    }  # fmt: skip


def test_the_access_log_appends_to_its_file(tmp_path):
    for _ in range(2):
        log = open_access_log(str(tmp_path / "access.log"))
        log.consume([observation()])
        log.close()
    assert len((tmp_path / "access.log").read_text().splitlines()) == 2


def test_an_access_log_that_cannot_be_opened_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r'access_log ".*" cannot be opened .*writable folder'):
        open_access_log(str(tmp_path / "missing" / "access.log"))


def test_everything_behind_one_sink_gets_every_observation(tmp_path):
    logs = [
        Detached(open_access_log(str(tmp_path / "a.log"))),
        Detached(ParquetWriter(tmp_path / "o")),
    ]
    metrics = Metrics()
    sink = Sink(1000, [metrics, *logs], interval_s=0.001)
    for log in logs:
        log.start()
    sink.start()
    for number in range(700):
        sink.record(observation(request_id=str(number)))
    sink.close()
    lines = [json.loads(line)["id"] for line in (tmp_path / "a.log").read_text().splitlines()]
    assert lines == [str(n) for n in range(700)]
    assert read_observations(tmp_path / "o").column("request_id").to_pylist() == lines
    assert b'version="3"} 700.0' in metrics.render()[0]
    assert [log.dropped for log in logs] == [0, 0]


def test_rows_lost_to_a_bad_disk_count_as_dropped(tmp_path):
    (tmp_path / "o").write_text("in the way")
    log = Detached(ParquetWriter(tmp_path / "o"))
    sink = Sink(10, [log])
    sink.record(observation())
    sink.close()
    assert (log.name, log.dropped) == ("ParquetWriter", 1)


def test_lines_that_could_not_be_written_count_as_dropped(tmp_path):
    stream = (tmp_path / "a.log").open("wb")
    stream.close()
    log = Detached(AccessLog(stream))
    log.consume([observation(), observation()])
    log.close()
    assert (log.dropped, log.failures) == (2, 1)


def test_the_process_log_is_json_lines_when_nobody_watches(root_logger):
    out = io.StringIO()
    setup_logging("info", "auto", out)
    logging.getLogger("foretell.fleet").info("replica %d is ready", 2)
    logging.getLogger("foretell.fleet").debug("hidden")
    logging.getLogger("library").info("hidden")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("foretell.plane").exception("it failed")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["message"] == "replica 2 is ready"
    assert (first["level"], first["logger"]) == ("info", "foretell.fleet")
    assert "ValueError: why" in second["exception"]


def test_the_process_log_is_readable_on_a_terminal(root_logger):
    out = io.StringIO()
    out.isatty = lambda: True
    setup_logging("info", "auto", out)
    logging.getLogger("foretell").warning("low on memory")
    assert "WARNING" in out.getvalue()
    assert "low on memory" in out.getvalue()
    assert "{" not in out.getvalue()


def test_setting_up_the_log_twice_does_not_double_the_lines(root_logger):
    out = io.StringIO()
    setup_logging("info", "json", out)
    setup_logging("info", "json", out)
    logging.getLogger("foretell").info("once")
    assert len(out.getvalue().splitlines()) == 1


@pytest.mark.parametrize(("level", "style", "named"), [("inof", "auto", "info"), ("info", "jsno", "json")])
def test_a_wrong_level_or_style_is_named_with_the_nearest_known(level, style, named):
    with pytest.raises(ConfigError, match=f'Did you mean "{named}"'):
        setup_logging(level, style)


def test_a_gateway_that_writes_no_observations_does_not_load_pyarrow():
    code = "import sys, foretell.telemetry.access, foretell.telemetry.log, foretell.telemetry.parquet"
    code += ", foretell.telemetry.metrics as m; m.Metrics().render()"
    code += "; assert not {'pyarrow', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
