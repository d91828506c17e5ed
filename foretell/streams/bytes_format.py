"""The bytes of a message as they are, for a model with one BYTES input."""

from collections.abc import Sequence

from foretell.core.columns import to_tensor
from foretell.core.errors import InvalidInput
from foretell.core.tensor import Signature, Tensors
from foretell.streams.message import Message, Refusal


class BytesFormat:
    """Raises `InvalidInput` for a model that takes anything but one BYTES value of each row."""

    def __init__(self, signature: Signature) -> None:
        specs = signature.inputs
        if len(specs) != 1 or specs[0].datatype != "BYTES" or len(specs[0].shape) != 1:
            told = ", ".join(str(spec) for spec in specs)
            raise InvalidInput(f"--format bytes needs a model with one BYTES[?] input; this one takes {told}")
        self._spec = specs[0]
        self._signature = signature

    def decode(self, messages: Sequence[Message]) -> tuple[list[Message], list[bytes], list[Refusal]]:
        """Any bytes will do."""
        return list(messages), [message.value for message in messages], []

    def tensors(self, rows: Sequence[bytes]) -> Tensors:
        """One request of all rows."""
        tensors = {self._spec.name: to_tensor(list(rows), self._spec)}
        self._signature.check(tensors)
        return tensors
