"""torch.export programs: names, keyword inputs, results of every shape, compiled or not."""

import numpy as np
import pytest
from zoo import NAMES, TABLE, signature, spec, torch_kind, write_package

from foretell.core.errors import PackageError
from foretell.core.settings import ReplicaSettings
from foretell.runtimes import load

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_programs import ROWS  # noqa: E402

from foretell.runtimes.torch import read_program  # noqa: E402


def package_of(folder, module, args, kwargs, dynamic, sig, **options):
    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic)
    torch.export.save(program, folder / "model.pt2")
    return write_package(folder, "torch", "model.pt2", sig, trust_code=True, options=options)


class Mixed(torch.nn.Module):
    def forward(self, left, *, scale, right):
        return left + scale * right, left.sum(1)


def test_inputs_by_position_and_by_keyword_reach_their_places(tmp_path):
    sig = signature(
        [spec(name, "FP32", -1, 4) for name in ("left", "scale", "right")],
        [spec("sum", "FP32", -1, 4), spec("total", "FP32", -1)],
    )
    rows = {"left": torch.zeros(2, 4), "scale": torch.zeros(2, 4), "right": torch.zeros(2, 4)}
    keyword = {name: rows[name] for name in ("scale", "right")}
    dynamic = {"left": ROWS, "scale": ROWS, "right": ROWS}
    predictor = load(
        package_of(tmp_path, Mixed(), (rows["left"],), keyword, dynamic, sig), ReplicaSettings(threads=1), True
    )
    outputs = predictor.predict({"left": TABLE, "scale": TABLE * 0 + 3, "right": TABLE})
    np.testing.assert_allclose(outputs["sum"], TABLE * 4, rtol=1e-6)
    np.testing.assert_allclose(outputs["total"], TABLE.sum(axis=1), rtol=1e-6)


class One(torch.nn.Module):
    def forward(self, x):
        return x * 2


def test_the_signature_is_read_from_the_program():
    program = torch.export.export(One(), (torch.zeros(2, 3),), dynamic_shapes={"x": ROWS})
    found, keywords = read_program(program, outputs=("twice",))
    assert [str(s) for s in found.inputs + found.outputs] == ["x FP32[?, 3]", "twice FP32[?, 3]"]
    assert keywords == []


def test_too_few_names_for_the_outputs_say_so(tmp_path):
    package = torch_kind(tmp_path).package
    wrong = write_package(
        tmp_path, "torch", "model.pt2", package.manifest.signature, trust_code=True, options={"inputs": ["X", "Z"]}
    )
    with pytest.raises(PackageError, match=r"has 1 inputs, model\.toml names 2 \(X, Z\)"):
        load(wrong, ReplicaSettings(threads=1), True)


@pytest.mark.slow
def test_a_compiled_program_answers_like_the_plain_one(tmp_path):
    kind = torch_kind(tmp_path)
    plain = load(kind.package, ReplicaSettings(threads=1), True).predict(kind.inputs)
    compiled_package = write_package(
        tmp_path,
        "torch",
        "model.pt2",
        kind.package.manifest.signature,
        trust_code=True,
        options=NAMES | {"compile": True},
    )
    compiled = load(compiled_package, ReplicaSettings(threads=1), True).predict(kind.inputs)
    np.testing.assert_allclose(compiled["probabilities"], plain["probabilities"], atol=1e-6)
