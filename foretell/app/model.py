"""`foretell.load`: a model in this process, without a server. The same package, transforms and checks as online."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from foretell.app.packages import Opened, open_store, open_target
from foretell.app.speaking import Prompt, Speaker, request_of
from foretell.core.columns import to_tensors
from foretell.core.errors import InvalidInput, ModelFailed
from foretell.core.generation import Event, GenerateRequest, Piece
from foretell.core.model import Predictor
from foretell.core.settings import ReplicaSettings
from foretell.core.tensor import Signature, Tensors
from foretell.runtimes.loading import load as load_predictor
from foretell.runtimes.loading import load_generator
from foretell.store.store import Store


class Model:
    """A loaded model: `predict` answers rows, or, of a language model, `generate` and `stream` continue text.

    Not thread-safe; `close` it, or use it as a context manager. Made by `load`.
    """

    def __init__(self, opened: Opened, trust_code: bool = False, settings: ReplicaSettings | None = None) -> None:
        self.name = opened.name
        self.version = opened.version
        self.package = opened.package
        self._resources = contextlib.ExitStack()
        self._predictor: Predictor | None = None
        self._speaker: Speaker | None = None
        settings = settings or opened.package.manifest.replicas
        if opened.package.manifest.runtime == "llm":
            self._speaker = Speaker(load_generator(opened.package, settings, opened.package.manifest.generation))
            self._resources.callback(self._speaker.close)
        else:
            self._predictor = load_predictor(opened.package, settings, trust_code)
            self._resources.callback(self._predictor.close)
        self._open = True

    @property
    def signature(self) -> Signature:
        """Names, datatypes and shapes of what goes in and comes out."""
        return self.package.manifest.signature if self._predictor is None else self._predictor.signature

    @property
    def generates(self) -> bool:
        """Whether it is a language model."""
        return self._speaker is not None

    def predict(self, columns: Mapping[str, Any] | None = None, /, **more: Any) -> Tensors:
        """Outputs by name, as numpy arrays with one row per input row.

        Give inputs by name, as keywords or as one mapping: arrays, nested lists, text or bytes. Raises
        `InvalidInput` that names the wrong input, `ModelFailed` when the model raises.
        """
        self._check_open()
        if self._predictor is None:
            raise InvalidInput(f'"{self.name}" is a language model: it predicts no rows; call generate or stream')
        return self._predictor.predict(to_tensors({**(columns or {}), **more}, self.signature))

    def generate(self, prompt: Prompt, **options: Any) -> str:
        """What the model says to `prompt`: a text to continue, or the messages of a conversation
        (`[{"role": "user", "content": "…"}]`).

        Options are those of `core.generation.Stops` and `Sampling`: max_tokens, stop, temperature, top_p, seed, …
        Raises `InvalidInput` that names the option, `ModelFailed` when the model raises.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """As `generate`, piece by piece. Closing it, or forgetting it, cancels."""
        for event in self.events(request_of(prompt, options)):
            if isinstance(event, Piece) and event.text:
                yield event.text

    def events(self, request: GenerateRequest) -> Iterator[Event]:
        """Everything that comes of a whole request: several choices, tools, grammars, logprobs."""
        self._check_open()
        if self._speaker is None:
            raise InvalidInput(f'"{self.name}" generates no text: it predicts rows; call predict')
        yield from self._speaker.events(request)

    def _check_open(self) -> None:
        if not self._open:
            raise ModelFailed(f"{self.name} is closed; load it again")

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._open = False
        self._resources.close()

    def owns(self, resource: contextlib.AbstractContextManager[Any]) -> None:
        """Close `resource` with the model (the folder that a model file was imported into)."""
        self._resources.push(resource)

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.signature.inputs))
        outputs = ", ".join(map(str, self.signature.outputs))
        return f"<Model {self.name}@{self.version}: {inputs} → {outputs}>"


def load(reference_or_path: str | Path, store: str | Store | None = None, trust_code: bool = False) -> Model:
    """Load a model of the store (`"minilm"`, `"minilm@2"`), a package, or a model file.

    `store` is a folder, a URL or an opened `Store` (default: FORETELL_HOME or the user's own). Raises `NotFound`,
    `PackageError`, or `UntrustedCode` when loading would run code that `trust_code` did not allow.
    """
    scratch = tempfile.TemporaryDirectory(prefix="foretell-")
    try:
        with contextlib.ExitStack() as stack:
            opened_store = stack.enter_context(open_store(store)) if isinstance(store, str) else store
            opened = open_target(str(reference_or_path), opened_store, Path(scratch.name), trust_code)
        model = Model(opened, trust_code)
    except BaseException:
        scratch.cleanup()
        raise
    if opened.package.path.is_relative_to(scratch.name):
        model.owns(scratch)
    else:
        scratch.cleanup()
    return model
