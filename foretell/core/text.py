"""BYTES tensors as text: UTF-8 both ways, with the element that is not text named. Knows no tokenizer."""

import numpy as np

from foretell.core.errors import InvalidInput
from foretell.core.tensor import Tensor


def decode_text(array: Tensor, name: str) -> Tensor:
    """BYTES → an object array of `str`, same shape. Raises `InvalidInput` naming the element that is no UTF-8."""
    text = np.empty(array.size, dtype=object)
    for at, item in enumerate(array.ravel()):
        try:
            text[at] = item.decode() if isinstance(item, bytes) else str(item)
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f'input "{name}", element {at}: not UTF-8 text (byte {error.start} is'
                f" 0x{item[error.start]:02x}). Send the text encoded as UTF-8"
            ) from None
    return text.reshape(array.shape)


def encode_text(array: Tensor) -> Tensor:
    """An array of `str`, `bytes` or anything that prints → BYTES (object array of `bytes`), same shape."""
    raw = np.empty(array.size, dtype=object)
    raw[:] = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]
    return raw.reshape(array.shape)
