"""Makes a load target of any server that speaks the Open Inference Protocol over HTTP: reads the model's
signature, makes up inputs that agree with it, encodes them. Knows no server's code.
"""

import math
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
import numpy as np

from foretell.bench.http import HttpTarget, request_bytes
from foretell.core.errors import ConfigError, InvalidInput
from foretell.core.tensor import DTYPES, Signature, Tensor, Tensors, TensorSpec, datatype_of, to_wire

_SENTENCES = (
    b"The train to the coast leaves at seven.",
    b"Prices rose again in the last quarter.",
    b"A small dog slept under the kitchen table.",
    b"Please send me the invoice for March.",
)
_TIMEOUT_S = 10.0


def oip_target(
    url: str, inputs: Sequence[Tensors] = (), rows: int = 1, binary: bool = False, payloads: int = 32
) -> HttpTarget:
    """A target for `http://HOST:PORT/v2/models/NAME[/versions/V]`, or `http://HOST:PORT` with one model.

    inputs: the requests to send in turn; without them `payloads` different ones of `rows` rows are made up from
    the model's signature. binary: raw tensors by the binary extension instead of JSON.
    Raises `ConfigError` if the server or the model can't be reached, `InvalidInput` if `inputs` don't fit.
    """
    url = _model_url(url.rstrip("/"))
    signature = read_signature(url)
    if [spec.name for spec in (*signature.inputs, *signature.outputs)] == ["text_input", "text_output"]:
        raise ConfigError(f"{url} is a language model, whose answers are streams: measure it by `foretell bench llm`")
    random = np.random.default_rng(0)
    requests = list(inputs) or [make_inputs(signature, rows, random) for _ in range(payloads)]
    count = {signature.check(request) for request in requests}
    if len(count) != 1:
        raise InvalidInput(f"the requests have {sorted(count)} rows; give all of them the same number")
    encode = encode_binary if binary else encode_json
    bodies = []
    for request in requests:
        body, headers = encode(request)
        bodies.append(request_bytes(f"{url}/infer", body, headers))
    return HttpTarget(url, f"{url}/infer", bodies, count.pop())


def read_signature(url: str) -> Signature:
    """The signature that a model's metadata at `url` states."""
    found = _ask(url)
    try:
        specs = [[_spec(tensor) for tensor in found[side]] for side in ("inputs", "outputs")]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{url} answers without Open Inference Protocol metadata: {error!r}") from error
    return Signature(tuple(specs[0]), tuple(specs[1]))


def make_inputs(signature: Signature, rows: int, random: np.random.Generator, variable: int = 32) -> Tensors:
    """Inputs that agree with `signature`: `rows` rows, other variable dimensions of `variable`, values small
    enough to be token ids or pixels; BYTES are short English sentences.
    """
    return {spec.name: _make(spec, rows, random, variable) for spec in signature.inputs}


def encode_json(inputs: Tensors) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an infer request in JSON. Raises `InvalidInput` for BYTES that are not UTF-8."""
    tensors = []
    for name, array in inputs.items():
        data = array.ravel().tolist()
        if array.dtype.kind == "O":
            try:
                data = [item.decode() for item in data]
            except UnicodeDecodeError:
                raise InvalidInput(f'input "{name}" is not UTF-8 text; send it with binary=True') from None
        tensors.append({"name": name, "datatype": datatype_of(array), "shape": array.shape, "data": data})
    return msgspec.json.encode({"inputs": tensors}), {"content-type": "application/json"}


def encode_binary(inputs: Tensors) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an infer request with raw tensors both ways (the protocol's binary extension)."""
    tensors, raws = [], []
    for name, array in inputs.items():
        raw = bytes(to_wire(array))
        size = {"binary_data_size": len(raw)}
        tensors.append({"name": name, "datatype": datatype_of(array), "shape": array.shape, "parameters": size})
        raws.append(raw)
    head = msgspec.json.encode({"inputs": tensors, "parameters": {"binary_data_output": True}})
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return head + b"".join(raws), headers


def _make(spec: TensorSpec, rows: int, random: np.random.Generator, variable: int) -> Tensor:
    shape = tuple((rows if axis == 0 else variable) if size < 0 else size for axis, size in enumerate(spec.shape))
    dtype = DTYPES[spec.datatype]
    if dtype.kind == "O":
        array = np.empty(math.prod(shape), dtype=object)
        array[:] = [_SENTENCES[n] for n in random.integers(0, len(_SENTENCES), array.size)]
        return array.reshape(shape)
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    # 0 and 1 only: valid as token ids, masks, type ids and class codes alike, whatever the input means.
    return random.integers(0, 2, shape).astype(dtype)


def _spec(tensor: dict[str, Any]) -> TensorSpec:
    if tensor["datatype"] not in DTYPES:
        raise ValueError(f"datatype {tensor['datatype']}")
    return TensorSpec(tensor["name"], tensor["datatype"], tuple(int(size) for size in tensor["shape"]))


def _model_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.path:
        return url.removesuffix("/infer")
    index = _ask(urlunsplit(parts._replace(path="/v2/repository/index")), method="POST")
    names = sorted({entry["name"] for entry in index})
    if len(names) != 1:
        known = ", ".join(names) or "none"
        raise ConfigError(f"{url} serves these models: {known}; say which: {url}/v2/models/NAME")
    return f"{url}/v2/models/{names[0]}"


def _ask(url: str, method: str = "GET") -> Any:
    body = b"{}" if method == "POST" else None
    try:
        request = urllib.request.Request(url, data=body, method=method, headers={"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read())
    except urllib.error.HTTPError as error:
        told = error.read(500).decode(errors="replace")
        raise ConfigError(f"{url} answers {error.code}: {told}. Check the model's name") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{url} can't be asked: {error}. Is the server running there?") from error
