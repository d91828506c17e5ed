"""Versions are swapped and replicas are killed while requests flow: no wrong answer, no admitted request lost."""

import asyncio
import os
import signal

import aiohttp
import numpy as np
import onnxruntime
import pytest
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from foretell.app.config import load_config
from foretell.app.service import Service
from foretell.importers import import_model
from foretell.store.store import Store

ROWS = load_digits().data.astype(np.float32)
CLIENTS = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with two versions of one model that answer differently, `live` on the first."""
    folder = tmp_path_factory.mktemp("chaos")
    store = Store.open(folder / "store")
    for seed in (1, 2):
        model = MLPClassifier((16,), max_iter=5, random_state=seed).fit(ROWS, load_digits().target)
        path = folder / f"digits-{seed}.onnx"
        path.write_bytes(to_onnx(model, ROWS[:1], options={"zipmap": False}, target_opset=17).SerializeToString())
        import_model(path, folder / f"package-{seed}")
        store.add("digits", folder / f"package-{seed}")
    store.set_alias("digits", "live", 1)
    yield store
    store.close()


@pytest.fixture(scope="module")
def expected(store, tmp_path_factory):
    """What onnxruntime itself answers, by version."""
    sessions = {
        str(info.number): onnxruntime.InferenceSession(store.fetch(info).path / "model.onnx")
        for info in store.versions("digits")
    }
    return {version: session.run(["probabilities"], {"X": ROWS})[0] for version, session in sessions.items()}


async def run(store: Store, expected: dict, kills: int, swaps: int) -> dict[str, int]:
    """Let clients ask until so many replicas were killed and aliases moved; returns what happened how often."""
    flags = {
        "serve": ["digits@live"],
        "server": {"port": 0, "grpc_port": -1, "poll_s": 0.05},
        "observations": {"access_log": ""},
        "models": {"digits": {"replicas": {"count": 2, "threads": 1}}},
    }
    service = Service(load_config(flags=flags, environment={}), store)
    await service.start()
    url = f"http://127.0.0.1:{service.http_port}/v2/models/digits/infer"
    count = {"answers": 0, "kills": 0, "swaps": 0}
    latest = ""
    stop = asyncio.Event()

    async def client(http: aiohttp.ClientSession, number: int) -> None:
        nonlocal latest
        turn = number
        while not stop.is_set():
            turn = (turn * 31 + 7) % len(ROWS)
            row = ROWS[turn : turn + 1 + number % 3]
            data = {
                "inputs": [{"name": "X", "datatype": "FP32", "shape": list(row.shape), "data": row.ravel().tolist()}]
            }
            async with http.post(url, json=data) as response:
                body = await response.json()
                assert response.status == 200, body
            got = next(o for o in body["outputs"] if o["name"] == "probabilities")
            wanted = expected[body["model_version"]][turn : turn + len(row)]
            assert np.allclose(np.array(got["data"]).reshape(got["shape"]), wanted, atol=1e-5)
            latest = body["model_version"]
            count["answers"] += 1

    async def killer() -> None:
        while not stop.is_set():
            await asyncio.sleep(1.0)
            pids = [pid for deployment in service.plane.deployments for pid in deployment.pool.pids()]
            if pids and not stop.is_set():
                os.kill(pids[count["kills"] % len(pids)], signal.SIGKILL)
                count["kills"] += 1

    async def swapper() -> None:
        while not stop.is_set():
            await asyncio.sleep(1.0)
            target = 2 - count["swaps"] % 2
            await asyncio.to_thread(store.set_alias, "digits", "live", target)
            while str(target) != latest and not stop.is_set():
                await asyncio.sleep(0.01)
            count["swaps"] += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        tasks = [asyncio.ensure_future(client(http, n)) for n in range(CLIENTS)]
        helpers = [asyncio.ensure_future(killer()), asyncio.ensure_future(swapper())]
        while (count["kills"] < kills or count["swaps"] < swaps) and not any(task.done() for task in tasks):
            await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*tasks, *helpers)
    await service.stop()
    return count


async def test_no_answer_is_wrong_or_lost_while_replicas_die_and_versions_change(store, expected):
    count = await run(store, expected, kills=4, swaps=2)
    assert count["answers"] > 100


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_the_same_for_five_minutes(store, expected):
    print(await run(store, expected, kills=250, swaps=200))
