"""A package opens from a folder or a zip, has one digest for one content, and names the file that differs."""

import base64
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.core.errors import InvalidInput, PackageError
from foretell.core.tensor import TensorSpec
from foretell.store.package import SEAL, Package, digest_of, seal, zip_package
from foretell.store.sample import decode_column, decode_columns, encode_columns
from tests.store.packages import SIGNATURE, write_package


def test_equal_contents_have_equal_digests_under_any_name(tmp_path: Path):
    one = Package.open(write_package(tmp_path / "a", name="one"))
    other = Package.open(write_package(tmp_path / "b", name="other"))
    assert one.digest == other.digest
    assert len(one.digest) == 64


@pytest.mark.parametrize("change", [{"content": b"other"}, {"description": "words"}])
def test_another_artifact_or_manifest_is_another_digest(tmp_path: Path, change: dict):
    before = Package.open(write_package(tmp_path / "a")).digest
    assert Package.open(write_package(tmp_path / "b", **change)).digest != before


def test_comments_and_layout_of_model_toml_do_not_change_the_digest(tmp_path: Path):
    folder = write_package(tmp_path / "a")
    before = Package.open(folder).digest
    (folder / "model.toml").write_text("# hello\n" + (folder / "model.toml").read_text())
    assert Package.open(folder).digest == before


def test_a_sealed_package_verifies_and_keeps_its_digest(tmp_path: Path):
    folder = write_package(tmp_path / "a")
    before = Package.open(folder).digest
    assert seal(folder).digest == before
    assert Package.open(folder).digest == Package.open(folder, verify=False).digest == before


def damage_artifact(folder: Path) -> str:
    (folder / "model.onnx").write_bytes(b"weighty")
    return "model.onnx"


def damage_manifest(folder: Path) -> str:
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace("FP32", "FP16"))
    return "model.toml"


def remove_sample(folder: Path) -> str:
    (folder / "sample.json").unlink()
    return "sample.json"


def add_stranger(folder: Path) -> str:
    (folder / "transform.py").write_text("import os")
    return "transform.py"


@pytest.mark.parametrize("damage", [damage_artifact, damage_manifest, remove_sample, add_stranger])
def test_a_changed_file_of_a_sealed_package_is_named(tmp_path: Path, damage):
    folder = write_package(tmp_path / "a")
    seal(folder)
    name = damage(folder)
    with pytest.raises(PackageError, match=name):
        Package.open(folder)


def test_a_changed_seal_is_noticed(tmp_path: Path):
    folder = write_package(tmp_path / "a")
    digest = seal(folder).digest
    (folder / SEAL).write_text((folder / SEAL).read_text().replace(digest, "0" * 64))
    with pytest.raises(PackageError, match=SEAL):
        Package.open(folder)
    (folder / SEAL).write_text("{")
    with pytest.raises(PackageError, match=SEAL):
        Package.open(folder)


def test_a_folder_without_model_toml_is_refused(tmp_path: Path):
    with pytest.raises(PackageError, match=r"model\.toml"):
        Package.open(tmp_path)
    with pytest.raises(PackageError, match="not a package"):
        Package.open(tmp_path / "absent")


def test_an_artifact_that_is_absent_or_outside_is_refused(tmp_path: Path):
    folder = write_package(tmp_path / "a")
    (tmp_path / "outside.onnx").write_bytes(b"")
    text = (folder / "model.toml").read_text()
    for artifact in ("absent.onnx", "../outside.onnx"):
        (folder / "model.toml").write_text(text.replace('"model.onnx"', f'"{artifact}"'))
        with pytest.raises(PackageError, match="artifact"):
            Package.open(folder)


def test_a_symbolic_link_is_refused(tmp_path: Path):
    folder = write_package(tmp_path / "a")
    (folder / "labels.json").symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match="symbolic link"):
        Package.open(folder)


def test_a_named_file_is_found_and_an_absent_one_is_named(tmp_path: Path):
    package = Package.open(write_package(tmp_path / "a"))
    assert package.file("sample.json").is_file()
    for name in ("labels.json", "../a/sample.json", "/etc/hostname"):
        with pytest.raises(PackageError, match="no file"):
            package.file(name)


def test_a_zipped_package_opens_with_the_same_digest(tmp_path: Path):
    folder = write_package(tmp_path / "a")
    digest = seal(folder).digest
    archive = zip_package(folder, tmp_path / "a.zip")
    for _ in range(2):
        package = Package.open(archive, cache=tmp_path / "cache")
        assert package.digest == digest
        assert package.artifact.read_bytes() == b"weights"


def test_a_zip_of_the_folder_itself_opens_too(tmp_path: Path):
    folder = write_package(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"minilm/{path.name}")
    assert Package.open(tmp_path / "a.zip", cache=tmp_path / "cache").digest == Package.open(folder).digest


def test_a_zip_that_leaves_its_folder_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
    with pytest.raises(PackageError, match=r"evil\.txt"):
        Package.open(tmp_path / "bad.zip", cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_damaged_zip_is_refused(tmp_path: Path):
    archive = zip_package(write_package(tmp_path / "a", b"w" * 4000), tmp_path / "a.zip")
    raw = bytearray(archive.read_bytes())
    raw[45] ^= 0xFF
    archive.write_bytes(raw)
    with pytest.raises(PackageError, match=r"a\.zip"):
        Package.open(archive, cache=tmp_path / "cache")


def test_the_sample_is_read_by_the_signature(tmp_path: Path):
    sample = Package.open(write_package(tmp_path / "a")).sample()
    assert sample is not None
    assert sample["x"].dtype == np.float32 and sample["x"].shape == (2, 2) and np.isnan(sample["x"][1, 1])
    assert sample["text"].tolist() == ["grün".encode(), b"\xff"]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ('{"x": [[1, 2]]}', "text"),
        ('{"x": [[1, 2]], "text": ["a"], "txt": 1}', "txt"),
        ('{"x": [[1, "b"]], "text": ["a"]}', "x"),
        ('{"x": [[1, 2], [1]], "text": ["a"]}', "x"),
        ('{"x": [[1, 2]], "text": [{"b64": "?"}]}', "text"),
        ('{"x": [[1, 2]], "text": [1]}', "text"),
        ('{"x": [[1, 2]], "text": "a"}', "text"),
        ("[", "sample"),
    ],
)
def test_a_wrong_sample_names_the_column(tmp_path: Path, text: str, column: str):
    folder = write_package(tmp_path / "a")
    (folder / "sample.json").write_text(text)
    with pytest.raises(PackageError, match=column):
        Package.open(folder).sample()


def test_a_package_may_have_no_sample(tmp_path: Path):
    folder = write_package(tmp_path / "a")
    (folder / "sample.json").unlink()
    assert Package.open(folder).sample() is None


def test_ragged_text_columns_are_refused():
    with pytest.raises(InvalidInput, match="ragged"):
        decode_column([["a"], ["b", "c"]], TensorSpec("words", "BYTES", (-1, -1)))


@given(st.lists(st.tuples(st.floats(width=32, allow_infinity=False), st.binary()), min_size=1))
def test_columns_survive_a_round_trip(rows: list):
    columns = {
        "x": [[float(f), float(f)] for f, _ in rows],
        "text": [{"b64": base64.b64encode(b).decode()} for _, b in rows],
    }
    tensors = decode_columns(columns, SIGNATURE.inputs)
    again = decode_columns(encode_columns(tensors), SIGNATURE.inputs)
    assert np.array_equal(tensors["x"], again["x"], equal_nan=True)
    assert tensors["text"].tolist() == again["text"].tolist() == [b for _, b in rows]


def test_the_digest_does_not_depend_on_the_order_of_files():
    assert digest_of({"a": "1", "b": "2"}) == digest_of({"b": "2", "a": "1"}) != digest_of({"a": "2", "b": "1"})
