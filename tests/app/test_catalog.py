"""A plane follows its store: what is wanted is served, what fails leaves what was, and clients may load and unload."""

import numpy as np
import pytest

from foretell.app.catalog import Catalog
from foretell.app.config import load_config
from foretell.core.errors import ConfigError, Conflict, NotFound, PackageError
from foretell.core.reference import Reference, parse_reference
from foretell.core.request import Request
from foretell.fleet.launcher import LocalProcess
from foretell.importers import import_model
from foretell.plane.plane import Plane
from foretell.store.package import Package
from foretell.store.store import Store

SIGNATURE = (
    'SIGNATURE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],'
    ' "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}]}\n'
)


class World:
    def __init__(self, folder) -> None:
        self.folder = folder
        self.store = Store.open(folder / "store")
        self.plane = Plane(LocalProcess, lambda observation: None)
        self.made = 0

    def package(self, factor: int, load: str = "") -> Package:
        self.made += 1
        source = self.folder / f"model{self.made}.py"
        source.write_text(SIGNATURE + f"def predict(x):\n    return x * {factor}\n")
        out = self.folder / f"package{self.made}"
        import_model(source, out, trust_code=True)
        if load:
            (out / source.name).write_text(source.read_text() + load)
        return Package.open(out, verify=False)

    def add(self, name: str, factor: int, load: str = "") -> None:
        self.store.add(name, self.package(factor, load).path)

    def catalog(self, *serve: str, fixed: dict | None = None, **config) -> Catalog:
        settings = load_config(flags={"server": {"trust_code": True}, **config}, environment={})
        catalog = Catalog(self.plane, self.store, settings, [parse_reference(r) for r in serve], fixed or {})
        self.plane.repository = catalog
        return catalog

    async def ask(self, reference: str) -> float:
        request = Request({"x": np.ones(1, np.float32)}, 1)
        return float((await self.plane.infer(parse_reference(reference), request)).outputs["y"][0])


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    yield world
    await world.plane.close(1.0)
    world.store.close()


async def test_the_newest_version_is_served_and_then_what_live_points_to(world):
    world.add("m", 1)
    world.add("m", 2)
    catalog = world.catalog("m")
    await catalog.start()
    assert await world.ask("m") == 2
    world.store.set_alias("m", "live", 1)
    await catalog._sync([])
    assert await world.ask("m") == 1
    with pytest.raises(NotFound, match="in service: 1"):
        await world.ask("m@2")


async def test_a_version_that_cannot_be_loaded_leaves_the_old_one_in_service_and_says_so(world):
    world.add("m", 1)
    catalog = world.catalog("m")
    await catalog.start()
    world.add("m", 2, load="raise RuntimeError('weights are missing')\n")
    await catalog._sync([])
    assert await world.ask("m") == 1
    (entry,) = catalog.index()
    assert (entry.name, entry.state) == ("m", "UNAVAILABLE")
    assert "weights are missing" in entry.reason


async def test_one_broken_model_does_not_hold_up_the_others(world):
    world.add("good", 1)
    world.add("bad", 1)
    catalog = world.catalog("bad", "good")
    await catalog.start()
    world.add("bad", 2, load="raise RuntimeError('broken')\n")
    world.add("good", 2)
    await catalog._sync([])
    assert (await world.ask("bad"), await world.ask("good")) == (1, 2)


async def test_a_client_may_load_and_unload_and_a_failed_load_is_not_wanted_any_more(world):
    world.add("m", 1)
    world.add("n", 3)
    world.add("broken", 1, load="raise RuntimeError('broken')\n")
    catalog = world.catalog("m")
    await catalog.start()
    await world.plane.load(Reference("n"))
    assert await world.ask("n") == 3
    with pytest.raises(PackageError, match="broken"):
        await world.plane.load(Reference("broken"))
    assert {e.name: e.reason for e in catalog.index()} == {"broken": "not loaded"}
    with pytest.raises(NotFound):
        await world.plane.load(Reference("unknown"))
    await world.plane.unload("n")
    with pytest.raises(NotFound):
        await world.ask("n")


async def test_a_file_on_the_command_line_is_not_taken_for_a_version_of_the_store(world):
    world.add("m", 1)
    catalog = world.catalog(fixed={"m": world.package(7)})
    await catalog.start()
    assert await world.ask("m") == 7
    with pytest.raises(Conflict, match="a file"):
        await world.plane.load(parse_reference("m@1"))
    assert await world.ask("m") == 7


async def test_settings_for_a_model_that_is_not_served_are_refused(world):
    world.add("digits", 1)
    with pytest.raises(ConfigError, match=r'models.digit: .* Did you mean "digits"'):
        world.catalog("digits", models={"digit": {"batching": {"max_batch_size": 8}}})


async def test_the_operators_settings_win_over_the_packages_own(world):
    world.add("m", 1)
    await world.catalog("m", models={"m": {"batching": {"max_batch_size": 8}, "replicas": {"count": 2}}}).start()
    (deployment,) = world.plane.deployments
    assert (deployment.spec.batching.max_batch_size, deployment.spec.replicas.count) == (8, 2)
