"""torch.export programs: kept as they are under trust, with the signature that the program states."""

from pathlib import Path

import numpy as np
import pytest

from foretell.core.errors import PackageError, UntrustedCode
from foretell.core.settings import ReplicaSettings
from foretell.importers import import_model
from foretell.runtimes import load
from foretell.store.package import Package

torch = pytest.importorskip("torch")


class Doubler(torch.nn.Module):
    def forward(self, rows):
        return {"twice": 2 * rows}


def save(path: Path, dynamic: bool) -> Path:
    shapes = {"rows": {0: torch.export.Dim("n")}} if dynamic else None
    torch.export.save(torch.export.export(Doubler(), (torch.zeros(2, 3),), dynamic_shapes=shapes), path)
    return path


def test_a_program_with_a_dynamic_batch_takes_any_number_of_rows(tmp_path: Path):
    manifest = import_model(save(tmp_path / "m.pt2", True), tmp_path / "p", trust_code=True)
    assert [str(s) for s in (*manifest.signature.inputs, *manifest.signature.outputs)] == [
        "rows FP32[?, 3]",
        "twice FP32[?, 3]",
    ]
    assert manifest.runtime == "torch" and manifest.trust_code
    predictor = load(Package.open(tmp_path / "p"), ReplicaSettings(threads=1), trust_code=True)
    assert predictor.predict({"rows": np.ones((5, 3), np.float32)})["twice"].tolist() == [[2, 2, 2]] * 5


def test_a_program_with_a_fixed_batch_is_kept_and_told(tmp_path: Path):
    lines: list[str] = []
    manifest = import_model(save(tmp_path / "m.pt2", False), tmp_path / "p", trust_code=True, report=lines.append)
    assert not manifest.signature.batchable
    assert any("dynamic batch" in line for line in lines)


def test_a_program_needs_trust(tmp_path: Path):
    (tmp_path / "m.pt2").write_bytes(b"PK")
    with pytest.raises(UntrustedCode, match=r"torch\.onnx\.export"):
        import_model(tmp_path / "m.pt2", tmp_path / "p")


def test_a_damaged_program_is_named(tmp_path: Path):
    (tmp_path / "m.pt2").write_bytes(b"PK broken")
    with pytest.raises(PackageError, match=r"m\.pt2"):
        import_model(tmp_path / "m.pt2", tmp_path / "p", trust_code=True)
