"""ONNX packages: the artifact is a graph that `accel.ort` runs. Knows packages, not sessions' insides."""

import logging
from pathlib import Path

import msgspec

from foretell.accel.ort import Session, open_session, time_one_thread
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import Signature, Tensors
from foretell.runtimes.options import read_options
from foretell.store.manifest import Transform
from foretell.store.package import Package

LOG = logging.getLogger("foretell.runtimes.onnx")

TINY_BYTES, TINY_ROWS, TINY_SECONDS = 4 * 2**20, 64, 200e-6
"""A graph whose file is below TINY_BYTES and that answers TINY_ROWS rows in TINY_SECONDS runs on one thread."""


class OnnxOptions(msgspec.Struct, frozen=True):
    """[options] of an onnx package.

    spinning: idle intra-op threads burn their core to wake faster (only where nothing shares the cores).
    arena: keep memory between runs; off gives it back to the system after each.
    """

    spinning: bool = False
    arena: bool = True


class OnnxPredictor:
    """Runs a session; computes only the outputs that are asked for."""

    def __init__(self, session: Session, outputs: tuple[str, ...] = ()) -> None:
        self._session = session
        self.device = session.choice.device
        specs = session.signature.outputs
        self._outputs = [s.name for s in specs if not outputs or s.name in outputs]
        self._signature = Signature(session.signature.inputs, tuple(s for s in specs if s.name in self._outputs))

    @property
    def signature(self) -> Signature:
        return self._signature

    def predict(self, inputs: Tensors) -> Tensors:
        return self._session.run(inputs, self._outputs)

    def close(self) -> None:
        self._session.close()


def choose_threads(path: Path, threads: int) -> int:
    """`threads`, or 1 where more would not pay: a tiny graph is done before its threads have met.

    The digits classifier takes 20 µs for 16 rows on one thread and 35 µs on two, and twice the CPU.
    """
    if threads == 1 or path.stat().st_size > TINY_BYTES:
        return threads
    seconds = time_one_thread(path, TINY_ROWS)
    if seconds is None or seconds > TINY_SECONDS:
        return threads
    LOG.info("%s: %.0f µs for %d rows, so one thread is enough", path.name, seconds * 1e6, TINY_ROWS)
    return 1


def open_predictor(package: Package, settings: ReplicaSettings, trust_code: bool) -> OnnxPredictor:
    """Open the package's graph with `settings.threads` threads on `settings.device`."""
    options = read_options(package.manifest, OnnxOptions)
    session = open_session(
        package.artifact,
        choose_threads(package.artifact, settings.threads),
        settings.device,
        spinning=options.spinning,
        arena=options.arena,
    )
    untransformed = package.manifest.transform == Transform()
    wanted = tuple(s.name for s in package.manifest.signature.outputs) if untransformed else ()
    return OnnxPredictor(session, wanted)
