"""ONNX Runtime sessions: which provider, how many threads, what the artifact's signature is.

The only importer of onnxruntime. Replicas and importers load it; the gateway's process never does. Knows nothing
of packages, batches or requests.
"""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from foretell.core.errors import ConfigError, ModelFailed, PackageError, did_you_mean
from foretell.core.tensor import DTYPES, Signature, Tensors, TensorSpec
from foretell.core.text import decode_text, encode_text

LOG = logging.getLogger("foretell.accel.ort")

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
"""Device names of `ReplicaSettings.device` and the execution provider that each stands for."""

_AUTO = ("cuda", "openvino")
"""What `auto` tries before the CPU: providers that are only installed on purpose and keep fp32 answers.

TensorRT builds engines for minutes at the first shapes it meets, and CoreML ships in every macOS wheel and
computes in fp16: both are for those who ask.
"""

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class Choice(msgspec.Struct, frozen=True):
    """The providers to hand to ONNX Runtime, in order, and one sentence that says why."""

    device: str
    providers: tuple[str, ...]
    why: str


class Description(msgspec.Struct, frozen=True):
    """What an ONNX file says about itself.

    `row_symbols` maps each input whose first axis is symbolic to the symbol's name: inputs with different names
    there may not be rows of one batch (graph nodes and edges, say). `left_out` are outputs that are not tensors
    (sequences, maps), which no protocol can carry.
    """

    signature: Signature
    row_symbols: dict[str, str]
    left_out: tuple[str, ...] = ()


def choose_providers(device: str, available: Sequence[str]) -> Choice:
    """Pick providers for `device` (auto, cpu, cuda, tensorrt, openvino, coreml) from the installed ones.

    Raises `ConfigError` when the device is unknown or the installed ONNX Runtime lacks it.
    """
    there = [name for name, provider in PROVIDERS.items() if provider in available]
    if device == "auto":
        for name in _AUTO:
            if name in there:
                return Choice(name, (PROVIDERS[name], CPU), f"the installed onnxruntime has {PROVIDERS[name]}")
        others = " and ".join(name for name in there if name != "cpu")
        hint = f" ({others} can be had by asking for it as the device)" if others else ""
        return Choice("cpu", (CPU,), f"no accelerator provider is installed that auto would take{hint}")
    if device not in PROVIDERS:
        raise ConfigError(f'unknown device "{device}". {did_you_mean(device, [*PROVIDERS, "auto"])}')
    if device not in there:
        raise ConfigError(
            f'device "{device}" needs {PROVIDERS[device]}, which the installed onnxruntime lacks (it has'
            f' {", ".join(there)}). Install the build that has it, or set device = "auto"'
        )
    providers = (PROVIDERS[device],) if device == "cpu" else (PROVIDERS[device], CPU)
    return Choice(device, providers, "the settings ask for it")


_PROBE = Choice("cpu", (CPU,), "a probe")


class Session:
    """One loaded ONNX graph on one device. Not thread-safe by contract: a replica runs one batch at a time."""

    def __init__(self, inner: ort.InferenceSession, description: Description, choice: Choice) -> None:
        self._inner: ort.InferenceSession | None = inner
        self.signature = description.signature
        self.description = description
        self.choice = choice
        self._strings_in = [s.name for s in self.signature.inputs if s.datatype == "BYTES"]
        self._strings_out = {s.name for s in self.signature.outputs if s.datatype == "BYTES"}
        self._all_outputs = [s.name for s in self.signature.outputs]

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run once. Arrays of `inputs` are read where they lie if they are C-contiguous; BYTES must be UTF-8.

        Computes `outputs` only (default: all of the signature). Raises `ModelFailed` with the runtime's reason,
        `InvalidInput` for text that is not UTF-8.
        """
        if self._inner is None:
            raise ModelFailed("the session is closed")
        if self._strings_in:
            inputs = {**inputs, **{name: decode_text(inputs[name], name) for name in self._strings_in}}
        names = self._all_outputs if outputs is None else outputs
        try:
            values = self._inner.run(names, inputs)
        except Exception as error:
            raise ModelFailed(f"onnxruntime: {_reason(error)}") from None
        if not self._strings_out:
            return dict(zip(names, values, strict=True))
        return {
            name: encode_text(value) if name in self._strings_out else value
            for name, value in zip(names, values, strict=True)
        }

    @property
    def inner(self) -> ort.InferenceSession:
        """onnxruntime's own session, for this room. Raises `ModelFailed` once closed."""
        if self._inner is None:
            raise ModelFailed("the session is closed")
        return self._inner

    def close(self) -> None:
        """Free the graph and its arena. Idempotent."""
        self._inner = None


def session_options(threads: int, spinning: bool = False, arena: bool = True) -> ort.SessionOptions:
    """Options of a replica's session: `threads` intra-op (0: all cores), operators one after another.

    Spinning is off because the gateway and other replicas share the cores: with it MiniLM on two threads beside a
    busy gateway ran 6 to 15 % slower on 15 to 35 % more CPU. Alone it only wins on graphs of microseconds.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def open_session(
    path: Path,
    threads: int = 0,
    device: str = "auto",
    log: logging.Logger = LOG,
    *,
    spinning: bool = False,
    arena: bool = True,
) -> Session:
    """Load the ONNX file at `path` and log one line saying what it runs on and why.

    Raises `ConfigError` when `device` is missing here, `PackageError` when the file is corrupt, needs a newer
    opset or uses operators that the provider lacks.
    """
    choice = choose_providers(device, ort.get_available_providers())
    inner = _create(path, session_options(threads, spinning, arena), choice.providers)
    started = inner.get_providers()[0]
    if started != choice.providers[0]:
        if device != "auto":
            raise ConfigError(
                f'device "{device}": onnxruntime has {choice.providers[0]} but could not start it (driver or'
                f' library missing); it fell back to {started}. Mend the driver, or set device = "cpu"'
            )
        why = f"{choice.providers[0]} is installed but would not start (driver or library missing)"
        choice = Choice("cpu", (CPU,), why)
    count = threads or "all"
    log.info("%s runs on %s (%s), %s intra-op threads: %s", path.name, choice.device, started, count, choice.why)
    return Session(inner, _describe(inner, path), choice)


def describe(path: Path) -> Description:
    """Read the signature of the ONNX file at `path` without optimising the graph. Raises `PackageError`."""
    options = session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _describe(_create(path, options, (CPU,)), path)


def read_signature(path: Path) -> Signature:
    """The signature of the ONNX file at `path`; symbolic axes are -1. Raises `PackageError`."""
    return describe(path).signature


def time_one_thread(path: Path, rows: int) -> float | None:
    """Seconds that one CPU thread takes for `rows` rows of zeros, the best of a few runs.

    None where that cannot be known: the graph takes text or has variable axes behind the rows, or fails on zeros.
    """
    session = Session(inner := _create(path, session_options(threads=1), (CPU,)), _describe(inner, path), _PROBE)
    inputs: Tensors = {}
    for spec in session.signature.inputs:
        if spec.datatype == "BYTES" or -1 in spec.shape[1:]:
            return None
        inputs[spec.name] = np.zeros([rows if d < 0 else d for d in spec.shape], DTYPES[spec.datatype])
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        try:
            session.run(inputs)
        except ModelFailed:
            return None
        best = min(best, time.perf_counter() - start)
        if best > 0.05:  # slow enough to know
            break
    return best


def _create(path: Path, options: ort.SessionOptions, providers: Sequence[str]) -> ort.InferenceSession:
    if not path.is_file():
        raise PackageError(f"{path.name}: no such file in the package")
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise PackageError(f"{path.name}: {_explain(error)}") from None


def _describe(inner: ort.InferenceSession, path: Path) -> Description:
    inputs: list[TensorSpec] = []
    symbols: dict[str, str] = {}
    for node in inner.get_inputs():
        spec = _spec(node)
        if spec is None:
            raise PackageError(
                f'{path.name}: input "{node.name}" is a {node.type}, which no protocol can carry; re-export the'
                " model with tensor inputs"
            )
        inputs.append(spec)
        if node.shape and not isinstance(node.shape[0], int):
            symbols[node.name] = node.shape[0] or ""
    nodes = {node.name: _spec(node) for node in inner.get_outputs()}
    outputs = [spec for spec in nodes.values() if spec is not None]
    left_out = [name for name, spec in nodes.items() if spec is None]
    if not outputs:
        raise PackageError(
            f"{path.name}: no output is a tensor ({', '.join(left_out)}); re-export the model (for"
            " scikit-learn models: options={'zipmap': False})"
        )
    return Description(Signature(tuple(inputs), tuple(outputs)), symbols, tuple(left_out))


def _spec(node: Any) -> TensorSpec | None:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        return None
    return TensorSpec(node.name, datatype, tuple(d if isinstance(d, int) else -1 for d in node.shape))


def _reason(error: Exception) -> str:
    """onnxruntime's message without its prefix and source paths."""
    text = str(error)
    return text.split("] : ", 1)[-1].strip()


def _explain(error: Exception) -> str:
    text = _reason(error)
    kind = type(error).__name__
    if kind in ("InvalidProtobuf", "InvalidGraph") or "Protobuf parsing failed" in text:
        return f"not a readable ONNX file, or cut short ({text[-300:]})"
    if "opset" in text.lower() or "ir version" in text.lower():
        return (
            f"this onnxruntime ({ort.__version__}) is too old for the file: {text[-300:]} Export with an older"
            " opset, or upgrade onnxruntime"
        )
    return f"onnxruntime refuses it: {text[-400:]}"
