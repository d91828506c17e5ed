"""The user's transform.py: windows declared in it, and a function that turns events and state into inputs of a model.

    spend = sliding("1h", every="5m")

    def transform(event, state):                    # one event …
        s = state.add(spend, event["amount"])
        return {"x": [s.sum, s.count]}

    def transform_batch(events, state):             # … or columns of a micro-batch, much faster
        s = state.add(spend, events["amount"])
        return {"x": np.stack([s.sum, s.count], axis=1)}

An event whose transform fails, fails alone and leaves no trace in the state.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from foretell.core.errors import ConfigError, ForetellError, InvalidInput, ModelFailed, StateError
from foretell.core.tensor import Tensor, Tensors
from foretell.runtimes.trust import load_file
from foretell.streams.fit import Fit, as_made
from foretell.streams.keyed import Batch, BatchState, Events, EventState
from foretell.streams.memory import TENSORS, VALUES, Memories
from foretell.streams.state import StateStore
from foretell.streams.table import Kind
from foretell.streams.times import Times
from foretell.streams.watermark import Marks, Watermark
from foretell.streams.windows import Gapped, Paned, Window


class Features(msgspec.Struct):
    """What a micro-batch became. `inputs` has one row for each event of `kept`, in that order; `failed` says why the
    others have none. `late` are the events that a window did not take, `ahead` those whose time is not believed (see
    watermark.py); both have rows all the same.
    """

    inputs: Tensors
    kept: list[int]
    failed: dict[int, ForetellError]
    late: list[int]
    ahead: list[int]


class Transform:
    """A loaded transform.py. `version` is the digest of its text, `kinds` what it keeps (see `StateStore.open`)."""

    def __init__(self, module: ModuleType, file: str, version: str) -> None:
        self.version = version
        self.windows: dict[str, Window] = {}
        rules = []
        for name, value in vars(module).items():
            if isinstance(value, Paned | Gapped) and value not in self.windows.values():
                self.windows[name] = value
            elif isinstance(value, Watermark):
                rules.append(value)
        for name in (VALUES, TENSORS):
            if name in self.windows:
                raise ConfigError(f'{file}: a window cannot be called "{name}"; name it otherwise')
        if len(rules) > 1:
            raise ConfigError(f"{file} declares {len(rules)} watermarks; a stream has one")
        self.watermark = rules[0] if rules else Watermark()
        self.kinds: dict[str, Kind] = {**self.windows, VALUES: Memories()}
        self._names = {window: name for name, window in self.windows.items()}
        one, self._many = _function(module, "transform"), _function(module, "transform_batch")
        function = one or self._many
        if function is None or (one and self._many):
            raise ConfigError(f"{file} has to define either transform(event, state) or transform_batch(events, state)")
        self._function = function
        self._where = f"{file}: {function.__name__}"

    @classmethod
    def load(cls, path: str | Path, trust_code: bool) -> "Transform":
        """Run the file. Raises `UntrustedCode` without `trust_code`, `PackageError` if it fails, `ConfigError` if it is
        not there or declares nothing to call."""
        file = Path(path)
        if not file.is_file():
            raise ConfigError(f"there is no file {file}, which --state names")
        module = load_file(file, trust_code)
        return cls(module, file.name, hashlib.sha256(file.read_bytes()).hexdigest())

    def run(
        self,
        store: StateStore,
        partition: str,
        keys: Sequence[bytes],
        times: Times,
        marks: Marks,
        events: Sequence[Mapping[str, Any]],
        fit: Fit = as_made,
    ) -> Features:
        """Put a micro-batch of one partition through the function, in its order. `marks` are `store.advance`'s. What
        does not `fit` has failed.

        Raises `StateError` if the file cannot be read; then open the store anew and go on from its positions.
        """
        store.keep()
        batch = Batch(store, self._names, partition, list(keys), times, marks)
        if self._many is not None:
            try:
                inputs = self._run_many(batch, events, fit)
                store.keep()
                return Features(inputs, list(range(len(events))), {}, sorted(batch.late), batch.ahead)
            except ModelFailed:
                store.undo()
                batch.late.clear()
        rows = _Rows(self._where)
        failed: dict[int, ForetellError] = {}
        for at, event in enumerate(events):
            try:
                rows.add(self._run_one(batch, at, event, fit))
                store.keep()
            except ModelFailed as error:
                store.undo()
                failed[at] = error
        kept = [at for at in range(len(events)) if at not in failed]
        return Features(rows.tensors(), kept, failed, sorted(batch.late), batch.ahead)

    def _run_many(self, batch: Batch, events: Sequence[Mapping[str, Any]], fit: Fit) -> Tensors:
        return self._call(Events(events), BatchState(batch), lambda made: fit(made, len(events)))

    def _run_one(self, batch: Batch, at: int, event: Mapping[str, Any], fit: Fit) -> Tensors:
        if self._many is None:
            return self._call(event, EventState(batch, at), lambda made: fit({n: [v] for n, v in made.items()}, 1))
        alone = batch.only(at)
        inputs = self._run_many(alone, [event], fit)
        batch.late.update({at} if alone.late else ())
        return inputs

    def _call(self, given: Any, state: Any, fitted: Callable[[dict[str, Any]], Tensors]) -> Tensors:
        try:
            made = self._function(given, state)
            if not isinstance(made, Mapping):
                raise InvalidInput(f"returned {type(made).__name__}, expected a dict of the model's inputs")
            return fitted({str(name): value for name, value in made.items()})
        except StateError:
            raise
        except ForetellError as error:
            raise ModelFailed(f"{self._where}: {error.message}") from error
        except Exception as error:
            raise ModelFailed(f"{self._where} raised {type(error).__name__}: {error}") from error


class _Rows:
    """Inputs of one event after the other; where a model leaves a shape open, all must look like the first."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._columns: dict[str, list[Tensor]] = {}

    def add(self, row: Tensors) -> None:
        shapes = {name: array.shape[1:] for name, array in row.items()}
        if self._shapes is None:
            self._shapes = shapes
        if shapes != self._shapes:
            raise ModelFailed(f"{self._where} returned {_told(shapes)}, for other events {_told(self._shapes)}")
        for name, array in row.items():
            self._columns.setdefault(name, []).append(array)

    def tensors(self) -> Tensors:
        return {name: np.concatenate(column) for name, column in self._columns.items()}


def _told(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing"


def _function(module: ModuleType, name: str) -> Callable[..., Any] | None:
    function = getattr(module, name, None)
    if function is not None and not callable(function):
        raise ConfigError(f"{name} is {type(function).__name__}, expected a function")
    return function
