"""One package, the same answers: what a job writes is bit for bit what the server answers to the same rows in the same
batch, on every demo model, and within the stated tolerance in batches of another shape.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tritonclient.http as triton
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from examples import demo_models
from examples.demo import LITE0_CONFIG
from foretell.app.config import load_config
from foretell.cli.child import ChildServer
from foretell.cli.importing import make_package

TOLERANCE = 1e-4
"""Absolute, of embeddings and probabilities: docs/batch.md states it."""

WORDS = ["a cat sat on the mat", "dogs run", "", "the quick brown fox jumps over the lazy dog " * 3, "münchen"]


def texts() -> list[bytes]:
    return [f"{number} {WORDS[number % len(WORDS)]}".encode() for number in range(12)]


def images(folder) -> list[bytes]:
    found = []
    for number, picture in enumerate(load_sample_images().images):
        Image.fromarray(picture).save(path := folder / f"{number}.jpg")
        found.append(path.read_bytes())
    return found * 2


DEMO = {
    "digits_onnx": (demo_models.digits_onnx, "", "X", lambda folder: list(load_digits().data[:40].astype(np.float32))),
    "minilm": (demo_models.minilm, "", "text", lambda folder: texts()),
    "lite0": (demo_models.lite0, LITE0_CONFIG, "image", images),
    "magika": (demo_models.magika, "", "file", lambda folder: [*texts(), *images(folder)]),
}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", DEMO)
def test_a_job_and_the_server_give_the_same_answers(world, name):
    settings, column, values = prepared(world, name)
    source = world.table("in.parquet", id=np.arange(len(values)), **{column: values})

    world.batch(name, source, batch_rows=len(values))
    world.batch(name, source, "other", batch_rows=3)
    online = asked(world, settings, name, column, values)
    together, apart = world.rows(), world.rows("other")
    assert together.column("id").to_pylist() == list(range(len(values)))
    for output, answers in online.items():
        same, near = matrix(together.column(output)), matrix(apart.column(output))
        np.testing.assert_array_equal(same, answers)
        if answers.dtype.kind == "f":
            np.testing.assert_allclose(near, answers, atol=TOLERANCE)
        else:
            np.testing.assert_array_equal(near, answers)


def prepared(world, name: str) -> tuple[Path, str, list]:
    """Adds the model. One settings file for all modes (another number of threads would be another order of sums), the
    input, and rows of it.
    """
    make, config, column, rows_of = DEMO[name]
    try:
        model = make(world.folder / "files")
    except demo_models.ModelMissing as error:
        pytest.skip(str(error))
    extra = world.folder / "extra.toml"
    extra.write_text(config)
    make_package(model, world.folder / "package", True, "", None, extra if config else None, lambda line: None)
    world.store.add(name, world.folder / "package")
    settings = world.folder / "foretell.toml"
    settings.write_text(f"[server]\ntrust_code = true\n[models.{name}.replicas]\ncount = 1\nthreads = 1\n")
    world.config = load_config(settings)
    return settings, column, rows_of(world.folder)


def asked(world, settings: Path, name: str, column: str, values) -> dict[str, np.ndarray]:
    """All rows as one request, by an unchanged client in binary form."""
    array = np.array(values, dtype=object if isinstance(values[0], bytes) else np.float32)
    kind = "BYTES" if array.dtype == object else "FP32"
    arguments = [name, "--store", str(world.folder / "home"), "--port", "0", "--grpc-port", "-1"]
    with ChildServer([*arguments, "--access-log", "none", "--config", str(settings)]) as server:
        client = triton.InferenceServerClient(server.url.removeprefix("http://"))
        given = triton.InferInput(column, array.shape, kind)
        given.set_data_from_numpy(array)
        result = client.infer(name, [given])
        outputs = [output["name"] for output in result.get_response()["outputs"]]
        return {output: text(result.as_numpy(output)) for output in outputs}


def text(array: np.ndarray) -> np.ndarray:
    return np.array([item.decode() for item in array.ravel()]).reshape(array.shape) if array.dtype == object else array


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=np.float32 if "float" in str(column.type) else None)
