"""Runs of a session over memory that the caller owns: inputs are read and outputs written where they lie.

Knows no models. Sessions of operators that update their inputs in place need this: the same array may be bound as
an input and as an output.
"""

from typing import Any

from numpy.typing import NDArray

from foretell.accel.ort import Session
from foretell.core.errors import ModelFailed


class Binding:
    """Inputs and outputs of a session, bound by name; what is bound stays bound until it is bound again.

    ONNX Runtime keeps pointers only, so the arrays are kept alive here. They must be C-contiguous.
    """

    def __init__(self, session: Session) -> None:
        self._inner = session.inner
        self._bound = self._inner.io_binding()
        self._arrays: dict[str, NDArray[Any]] = {}

    def input(self, name: str, array: NDArray[Any]) -> None:
        """Read input `name` from `array`, which may change between runs."""
        self._keep(f"input {name}", array)
        self._bound.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def output(self, name: str, array: NDArray[Any]) -> None:
        """Write output `name` into `array`, whose shape must be the one that comes out."""
        self._keep(f"output {name}", array)
        self._bound.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        """Run once. Raises `ModelFailed` with the runtime's reason."""
        try:
            self._inner.run_with_iobinding(self._bound)
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise ModelFailed(f"onnxruntime: {error}") from None

    def _keep(self, key: str, array: NDArray[Any]) -> None:
        if not array.flags.c_contiguous:
            raise ValueError(f"{key}: bound arrays must be C-contiguous")
        self._arrays[key] = array
