"""Small packages on disk for the store's tests; their artifact is never loaded."""

from pathlib import Path

from foretell.core.tensor import Signature, TensorSpec
from foretell.store.manifest import Identity, Manifest, encode_manifest

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 2)), TensorSpec("text", "BYTES", (-1,))),
    outputs=(TensorSpec("y", "FP32", (-1, 1)),),
)


def write_package(folder: Path, content: bytes = b"weights", name: str = "", description: str = "") -> Path:
    """A package folder whose artifact holds `content`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "sample.json").write_text('{"x": [[1, 2], [3, null]], "text": ["grün", {"b64": "/w=="}]}')
    manifest = Manifest("onnx", "model.onnx", SIGNATURE, description=description, package=Identity(name=name))
    (folder / "model.toml").write_text(encode_manifest(manifest))
    return folder
