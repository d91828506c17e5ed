"""A model on a running server, asked over the Open Inference Protocol with binary tensors. Standard library only."""

import http.client
import re
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from foretell.core.errors import ForetellError, InvalidInput, NotFound, NotReady, PackageError, did_you_mean
from foretell.core.tensor import Signature, Tensors, TensorSpec, datatype_of, from_wire, to_wire
from foretell.core.text import encode_text

_MODEL = re.compile(
    r"/(?:v2/models/)?(?P<name>[^/@]+)(?:@(?P<selector>[^/]+)|/versions/(?P<version>[^/]+))?(?:/infer)?/?"
)
TIMEOUT_S = 60.0


class RemoteModel:
    """`url`: http://host:port/v2/models/NAME[/versions/N], or shorter http://host:port/NAME[@N]; the bare server
    when it serves one model. Raises `NotFound` or `NotReady` when it is not there.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise InvalidInput(f'"{url}": expected http://host:port/NAME')
        self._host, self._port = parts.hostname, parts.port or 80
        name = self._name(parts.path)
        self._path = f"/v2/models/{name}"
        metadata = msgspec.json.decode(self._call("GET", self._path)[0])
        self.name, self.version = str(metadata["name"]), str((metadata.get("versions") or [""])[-1])
        self.signature = Signature(_specs(metadata["inputs"]), _specs(metadata["outputs"]))

    def predict(self, tensors: Tensors) -> Tensors:
        """Inputs that agree with the signature → outputs. Raises a `ForetellError` with the server's own words."""
        entries, tail = [], []
        for name, array in tensors.items():
            raw = to_wire(encode_text(array) if array.dtype.kind == "O" else array)
            tail.append(raw)
            parameters = {"binary_data_size": len(raw)}
            entries.append(
                {"name": name, "datatype": datatype_of(array), "shape": array.shape, "parameters": parameters}
            )
        head = msgspec.json.encode({"inputs": entries, "parameters": {"binary_data_output": True}})
        headers = {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(len(head)),
        }
        body, answer_headers = self._call("POST", f"{self._path}/infer", b"".join([head, *tail]), headers)
        return self._read(body, answer_headers)

    def close(self) -> None:
        """Nothing to give back: every call has its own connection."""

    def _read(self, body: bytes, headers: dict[str, str]) -> Tensors:
        size = int(headers.get("inference-header-content-length") or len(body))
        answer = msgspec.json.decode(body[:size])
        self.version = str(answer.get("model_version", self.version))
        outputs: Tensors = {}
        at = size
        for entry in answer["outputs"]:
            length = int(entry["parameters"]["binary_data_size"])
            shape = tuple(int(d) for d in entry["shape"])
            outputs[entry["name"]] = from_wire(body[at : at + length], entry["datatype"], shape, entry["name"])
            at += length
        return outputs

    def _name(self, path: str) -> str:
        match = _MODEL.fullmatch(path)
        if match:
            version = match["version"] or match["selector"]
            if version and version.isdigit():
                return f"{quote(match['name'])}/versions/{quote(version)}"
            return quote(match["name"] + (f"@{version}" if version else ""))
        if path not in ("", "/"):
            raise InvalidInput(f'"{path}" names no model; write http://host:port/NAME')
        index = msgspec.json.decode(self._call("POST", "/v2/repository/index", b"{}")[0])
        names = sorted({entry["name"] for entry in index if entry["state"] == "READY"})
        if len(names) != 1:
            raise NotFound(f"the server has {len(names)} models; add a name to the URL. {did_you_mean('', names)}")
        return quote(names[0])

    def _call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body or None, headers or {})
            response = connection.getresponse()
            content = response.read()
        except OSError as error:
            raise NotReady(
                f"no server answers at {self._host}:{self._port} ({error}); start one: foretell serve"
            ) from None
        finally:
            connection.close()
        if response.status >= 400:
            raise _refusal(response.status, content)
        return content, {key.lower(): value for key, value in response.getheaders()}


def _refusal(status: int, content: bytes) -> ForetellError:
    try:
        said = str(msgspec.json.decode(content)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        said = content[:200].decode("utf-8", "replace") or f"HTTP status {status}"
    kinds: dict[int, type[ForetellError]] = {400: InvalidInput, 404: NotFound, 503: NotReady}
    return kinds.get(status, PackageError if status == 403 else ForetellError)(said)


def _specs(entries: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(e["name"], e["datatype"], tuple(int(d) for d in e["shape"])) for e in entries)
