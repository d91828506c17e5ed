"""The user's transform.py: windows declared in it, and a function that turns events and state into inputs of a model.

    spend = sliding("1h", every="5m")

    def transform(event, state):                    # one event …
        s = state.add(spend, event["amount"])
        return {"x": [s.sum, s.count]}

    def transform_batch(events, state):             # … or the columns of a micro-batch: the same names, many times faster
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

from foretell.core.errors import ConfigError, ForetellError, ModelFailed, StateError
from foretell.core.tensor import Tensor, Tensors
from foretell.runtimes.trust import load_file
from foretell.streams.keyed import VALUES, Batch, BatchState, Events, EventState
from foretell.streams.memory import Memories
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
        if VALUES in self.windows:
            raise ConfigError(f'{file}: a window cannot be called "{VALUES}"; name it otherwise')
        if len(rules) > 1:
            raise ConfigError(f"{file} declares {len(rules)} watermarks; a stream has one")
        self.watermark = rules[0] if rules else Watermark()
        self.kinds: dict[str, Kind] = {**self.windows, VALUES: Memories()}
        self._names = {window: name for name, window in self.windows.items()}
        self._one = _function(module, "transform")
        self._many = _function(module, "transform_batch")
        self._file = file
        if self._one is None and self._many is None:
            raise ConfigError(f"{file} defines neither transform(event, state) nor transform_batch(events, state)")

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
    ) -> Features:
        """Put a micro-batch of one partition through the function, in its order. `marks` are `store.advance`'s.

        Raises `StateError` if the file cannot be read; then open the store anew and go on from its positions.
        """
        store.keep()
        batch = Batch(store, self._names, partition, list(keys), times, marks)
        rows: list[Mapping[str, Any]] = []
        failed: dict[int, ForetellError] = {}
        if self._many is not None:
            try:
                inputs = self._run_many(self._many, batch, events)
                store.keep()
                return Features(inputs, list(range(len(events))), {}, sorted(batch.late), batch.ahead)
            except ModelFailed:
                store.undo()
                batch.late.clear()
        for at, event in enumerate(events):
            try:
                rows.append(self._run_one(batch, at, event))
                store.keep()
            except ModelFailed as error:
                store.undo()
                failed[at] = error
        kept = [at for at in range(len(events)) if at not in failed]
        inputs, misfits = self._together(rows)
        failed.update({kept[at]: error for at, error in misfits.items()})
        kept = [at for at in kept if at not in failed]
        return Features(inputs, kept, failed, sorted(batch.late), batch.ahead)

    def _run_many(self, function: Callable[..., Any], batch: Batch, events: Sequence[Mapping[str, Any]]) -> Tensors:
        made = self._call(function, Events(events), BatchState(batch))
        inputs = {str(name): np.asarray(value) for name, value in made.items()}
        for name, array in inputs.items():
            if not array.ndim or len(array) != len(events):
                raise ModelFailed(
                    f'{self._file}: transform_batch returned "{name}" of shape {list(array.shape)} for {len(events)} events'
                )
        return inputs

    def _run_one(self, batch: Batch, at: int, event: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._one is not None:
            return self._call(self._one, event, EventState(batch, at))
        assert self._many is not None
        alone = batch.only(at)
        inputs = self._run_many(self._many, alone, [event])
        batch.late.update({at} if alone.late else ())
        return {name: array[0] for name, array in inputs.items()}

    def _call(self, function: Callable[..., Any], given: Any, state: Any) -> Mapping[str, Any]:
        where = f"{self._file}: {function.__name__}"
        try:
            made = function(given, state)
        except StateError:
            raise
        except ForetellError as error:
            raise ModelFailed(f"{where}: {error.message}") from error
        except Exception as error:
            raise ModelFailed(f"{where} raised {type(error).__name__}: {error}") from error
        if not isinstance(made, Mapping):
            raise ModelFailed(f"{where} returned {type(made).__name__}, expected a dict of the model's inputs")
        return made

    def _together(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensors, dict[int, ForetellError]]:
        """The rows as tensors, without those that do not look like the first."""
        if not rows:
            return {}, {}
        names = rows[0].keys()
        first = {name: np.asarray(value).shape for name, value in rows[0].items()}
        misfits: dict[int, ForetellError] = {}
        columns: dict[str, list[Tensor]] = {name: [] for name in names}
        for at, row in enumerate(rows):
            arrays = {name: np.asarray(value) for name, value in row.items()}
            shapes = {name: array.shape for name, array in arrays.items()}
            if shapes != first:
                misfits[at] = ModelFailed(
                    f"{self._file}: transform returned {_told(shapes)}, for other events {_told(first)}"
                )
                continue
            for name in names:
                columns[name].append(arrays[name])
        return {name: np.stack(column) for name, column in columns.items()}, misfits


def _told(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing"


def _function(module: ModuleType, name: str) -> Callable[..., Any] | None:
    function = getattr(module, name, None)
    if function is not None and not callable(function):
        raise ConfigError(f"{name} is {type(function).__name__}, expected a function")
    return function
