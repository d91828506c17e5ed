"""Jobs on a real Ray cluster of this machine: the same files as without it, whoever dies meanwhile."""

import signal
import threading
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from foretell.app.batch import BatchService
from foretell.batch.output import OutputFolder
from foretell.cli.batch_run import ray_address
from foretell.core.errors import ConfigError, InvalidInput, PackageError, ReplicaCrashed
from foretell.store.package import Package
from foretell.store.store import Store
from tests.batch.conftest import PYTHON_MODEL
from tests.batch.test_faults import until

ray = pytest.importorskip("ray", reason="ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
CPUS = 2
ROWS = 600
SIZES = {"batch_rows": 25, "part_rows": 50}
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_failure_threshold": 5}
"""When a node counts as dead."""
WORDS = ("--batch-rows", 25, "--part-rows", 50, "--trust-code", "--json")
DOUBLE = """
import os, signal, time
FOLDER = {folder!r}
with open(FOLDER + "/loaded", "a") as file:
    print(os.getppid(), file=file)
def predict(x):
    if (x == -1).any(): raise ValueError("minus one")
    if (x == 123).any() and {dies}: os.kill(os.getppid(), signal.SIGKILL)
    time.sleep({pause})
    return {{"y": x * 2}}
"""
ONCE = "not os.path.exists(FOLDER + '/died') and not os.mkdir(FOLDER + '/died')"
WHILE_ARMED = "os.path.exists(FOLDER + '/armed')"


@pytest.fixture(scope="module")
def cluster():
    """Its nodes are processes of this machine; at first there is one. This process has joined it."""
    settings = {"num_cpus": CPUS, "include_dashboard": False, "_system_config": SOON}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=settings)
    ray.init(made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def on_ray(world, cluster):
    world.ray = ""
    return world


def double(world, name: str = "double", dies: str = "False", pause: float = 0.0) -> Path:
    """A model that doubles and notes which workers load it; and a table of `ROWS` rows with some on which it raises."""
    world.add_python(name, DOUBLE.format(folder=str(world.folder), dies=dies, pause=pause))
    x = np.arange(ROWS, dtype=np.float32)
    x[::77] = -1
    return world.table("in.parquet", id=np.arange(ROWS), x=x)


def files(world, output: str) -> dict[str, bytes]:
    """Everything in an output folder but the reports, which hold times."""
    folder = world.folder / output
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("_report")}


def alone(world, model: str, source, output: str = "calm", **more) -> None:
    """The same job in this process."""
    world.ray, before = None, world.ray
    world.batch(model, source, output, **SIZES, **more)
    world.ray = before


def whole(world, output: str = "out") -> None:
    """Every row is there once, in the part that it belongs to, or in the errors with its reason."""
    rows, failed = world.rows(output), {error["id"] for error in world.errors(output)}
    assert failed == set(range(0, ROWS, 77))
    assert rows.column("id").to_pylist() == [row for row in range(ROWS) if row not in failed]
    assert rows.column("y").to_pylist() == [2.0 * row for row in range(ROWS) if row not in failed]
    assert not list((world.folder / output).rglob("*.tmp"))


def loads(world) -> int:
    noted = world.folder / "loaded"
    return len(noted.read_text().splitlines()) if noted.exists() else 0


def test_a_job_on_ray_writes_the_same_files_bit_for_bit(on_ray):
    double(on_ray)
    for month in (1, 2):
        x = np.arange(120, dtype=np.float32) * month
        on_ray.table(f"flights/month={month}/f.parquet", x=np.where(x == 20, -1, x), truth=x * 2, id=np.arange(120))
    more = {"where": "id > 5", "label": "truth=y"}
    alone(on_ray, "double", on_ray.folder / "flights", **more)
    (on_ray.folder / "loaded").unlink()
    report = on_ray.batch("double", on_ray.folder / "flights", **SIZES, **more)
    assert files(on_ray, "out") == files(on_ray, "calm")
    assert len(files(on_ray, "out")) == 8, "six parts, two of them with errors"
    assert (report.read, report.filtered, report.errors, report.attempts) == (240, 12, 2, 1)
    assert report.quality is not None
    assert loads(on_ray) <= CPUS, "each worker keeps its model for all its parts"


def test_a_form_that_is_read_from_its_beginning_is_the_same_too(on_ray):
    double(on_ray)
    table = pa.table({"id": np.arange(130), "x": np.arange(130, dtype=np.float32)})
    pa.csv.write_csv(table, on_ray.folder / "in.csv")
    alone(on_ray, "double", on_ray.folder / "in.csv", format="jsonl")
    on_ray.batch("double", on_ray.folder / "in.csv", **SIZES, format="jsonl")
    assert files(on_ray, "out") == files(on_ray, "calm")
    assert len(files(on_ray, "out")) == 3


def test_a_worker_that_is_killed_in_mid_part_costs_a_part_and_no_row(on_ray):
    source = double(on_ray, dies=ONCE)
    report = on_ray.batch("double", source, **SIZES)
    assert (on_ray.folder / "died").exists(), "it was killed"
    assert (report.read, report.attempts) == (ROWS, 1)
    whole(on_ray)


def test_a_part_of_which_workers_die_stops_the_job_which_goes_on_without_ray(on_ray):
    source = double(on_ray, dies=WHILE_ARMED)
    (on_ray.folder / "armed").touch()
    with pytest.raises(ReplicaCrashed, match=r"part \d of .*in.parquet: 3 workers died of it.*What was comm"):
        on_ray.batch("double", source, **SIZES)
    assert on_ray.job().state == "failed"
    (on_ray.folder / "armed").unlink()
    on_ray.ray = None
    assert on_ray.batch("double", source, resume=True, **SIZES).attempts == 2
    whole(on_ray)


def test_too_many_errors_stop_a_job_on_ray(on_ray):
    with pytest.raises(InvalidInput, match=r"--max-errors allows 0; one of them: .*minus one"):
        on_ray.batch("double", double(on_ray), **SIZES, max_errors=0)
    assert on_ray.job().state == "failed"


def test_workers_that_do_not_see_the_store_say_so(on_ray, monkeypatch):
    source = double(on_ray)
    spec = BatchService._spec
    elsewhere = lambda *given: msgspec.structs.replace(spec(*given), package="/nowhere/double/1")  # noqa: E731
    monkeypatch.setattr(BatchService, "_spec", elsewhere)
    with pytest.raises(ConfigError, match=r"/nowhere/double/1 is not on .*need the store, the input and the output"):
        on_ray.batch("double", source, **SIZES)


def test_workers_whose_package_is_another_say_so(on_ray, monkeypatch):
    source = double(on_ray)
    package = Path(on_ray.store.fetch(on_ray.store.versions("double")[0]).path)
    fetched = Package.open(package)
    monkeypatch.setattr(Store, "fetch", lambda *_: fetched)
    (package / "model.py").write_text(PYTHON_MODEL.format(code="def predict(x): return {'y': x * 3}"))
    (package / "digest.json").unlink()
    with pytest.raises(PackageError, match="is another package than that of the job"):
        on_ray.batch("double", source, **SIZES)


def test_workers_that_write_to_a_disk_of_their_own_are_noticed(on_ray, monkeypatch):
    def nowhere(*_):
        raise FileNotFoundError

    source = double(on_ray)
    monkeypatch.setattr(OutputFolder, "size", nowhere)  # in this process; the workers are others
    with pytest.raises(ConfigError, match=r"a worker wrote part-.*and it is not in .*out here: on several machines"):
        on_ray.batch("double", source, **SIZES)
    assert on_ray.store.jobs.parts(on_ray.job().id) == []


def test_kill_and_ctrl_c_leave_a_job_that_goes_on_with_and_without_ray(on_ray, cluster):
    source = double(on_ray, pause=0.1)
    there = ("--on", "ray", "--address", cluster.address)
    running = on_ray.cli("batch", "double", source, on_ray.folder / "out", *WORDS, *there)
    until(lambda: parts(on_ray))
    running.kill()
    running.communicate()
    before = parts(on_ray)
    assert before < ROWS / SIZES["part_rows"], "it was killed in mid-job"
    running = on_ray.cli("jobs", "resume", on_ray.job().id, "--trust-code", *there)
    until(lambda: parts(on_ray) > before)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert (running.returncode, "Go on: foretell jobs resume" in said) == (130, True), said
    assert on_ray.job().state == "queued"
    on_ray.ray = None
    assert on_ray.batch("double", source, resume=True, **SIZES).attempts == 3
    whole(on_ray)


def parts(world) -> int:
    found = world.store.jobs.by_output(str(world.folder / "out"))
    return len(world.store.jobs.parts(found.id)) if found else 0


def test_a_node_that_dies_takes_its_worker_along_and_no_row(on_ray, cluster):
    node = cluster.add_node(num_cpus=1)
    source = double(on_ray, pause=0.15)
    removed = []

    def remove(progress) -> None:
        if loads(on_ray) > CPUS and not removed:
            removed.append(progress.parts)
            node.kill_raylet()

    on_ray.tell = remove
    assert on_ray.batch("double", source, **SIZES).attempts == 1
    assert removed
    assert removed[0] < ROWS / SIZES["part_rows"], "it died in mid-job"
    whole(on_ray)


def test_a_cluster_that_others_have_taken_is_waited_for_with_a_word(on_ray, monkeypatch, caplog):
    class Other:
        """Somebody else's actor; workers cannot import this module, so it is not of its top level."""

    monkeypatch.setattr("foretell.batch.ray.ROOM_S", 0.5)
    source = double(on_ray)
    other = ray.remote(num_cpus=CPUS)(Other).remote()
    ray.get(other.__ray_ready__.remote())
    leaving = threading.Timer(3, lambda: ray.kill(other))
    leaving.start()
    assert on_ray.batch("double", source, **SIZES).attempts == 1
    leaving.join()
    whole(on_ray)
    assert "others hold the CPUs of the Ray cluster" in caplog.text


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", 'no Ray cluster answers at "127.0.0.1:1" .*Name one that runs: --address HOST:PORT'),
        ("nowhere.invalid:6379", 'no Ray cluster answers at "nowhere.invalid:6379"'),
        ("ray://head:10001", '"ray://head:10001" is no address of a Ray cluster'),
    ],
)
def test_a_cluster_that_is_not_there_is_named(world, monkeypatch, address, says):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    source = double(world)
    world.ray = address
    with pytest.raises(ConfigError, match=says):
        world.batch("double", source)
    assert world.job().state == "failed"


def test_an_address_without_ray_is_refused():
    assert (ray_address("ray", "head:6379"), ray_address("ray", "")) == ("head:6379", "")
    assert ray_address("local", "") is None
    with pytest.raises(ConfigError, match="--address head:6379 is of a Ray cluster; say --on ray as well"):
        ray_address("local", "head:6379")
