"""Models that are functions, for the tests of the HTTP entrance."""

import numpy as np

from foretell.core.errors import ContextExceeded, InvalidInput, ModelFailed, Overloaded
from foretell.core.tensor import Signature, Tensors, TensorSpec
from foretell.testing import FakeGenerator, FakeModel


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def double(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] * 2, "total": inputs["x"].sum(axis=1)}


def echo(inputs: Tensors) -> Tensors:
    return dict(inputs)


def embed(inputs: Tensors) -> Tensors:
    lengths = [len(text) for text in inputs["text"]]
    return {"vector": np.array([[n, 3.0, 4.0] for n in lengths], dtype=np.float32)}


def odd(inputs: Tensors) -> Tensors:
    return {"y": np.array([[1.0, np.nan, np.inf]] * len(inputs["x"]), dtype=np.float32)}


def boom(inputs: Tensors) -> Tensors:
    raise ModelFailed('model "boom" raised ValueError: no')


def crash(inputs: Tensors) -> Tensors:
    raise ZeroDivisionError("a bug of ours")


def binary(inputs: Tensors) -> Tensors:
    out = np.empty(1, dtype=object)
    out[:] = [b"\xff\xfe"]
    return {"y": out}


ALL = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
X = (spec("x", "FP32", -1, 4),)
Y = (spec("y", "FP32", -1, 4), spec("total", "FP32", -1))


def models() -> list[FakeModel]:
    made = [
        FakeModel("double", Signature(X, Y), double, version="1"),
        FakeModel("double", Signature(X, Y), double, version="3", aliases=("live",), description="twice"),
        FakeModel("text", Signature((spec("t", "BYTES", -1, 1),), (spec("t", "BYTES", -1, 1),)), echo),
        FakeModel("minilm", Signature((spec("text", "BYTES", -1),), (spec("vector", "FP32", -1, 3),)), embed,
                  tags=("embeddings",)),
        FakeModel("odd", Signature(X, (spec("y", "FP32", -1, 3),)), odd),
        FakeModel("boom", Signature(X, Y), boom),
        FakeModel("crash", Signature(X, Y), crash),
        FakeModel("binary", Signature(X, (spec("y", "BYTES", -1),)), binary),
        FakeModel("slow", Signature(X, Y), double, delay_s=0.3),
        FakeModel("endless", Signature(X, Y), double, delay_s=60.0),
        FakeModel("loading", Signature(X, Y), double, ready=False),
        FakeModel("table", Signature((spec("age", "INT64", -1), spec("name", "BYTES", -1)),
                                     (spec("age", "INT64", -1), spec("name", "BYTES", -1))), echo),
    ]  # fmt: skip
    made += [FakeModel(name, generator=generator) for name, generator in generators().items()]
    for datatype in ALL:
        both = (spec("x", datatype, -1, -1),)
        made.append(FakeModel(f"echo-{datatype}", Signature(both, both), echo))
    return made


ODD_PIECES = ("Ünï", "", ' "🙂"', "\n\\", "\u2028</x>")


def generators() -> dict[str, FakeGenerator]:
    return {
        "chat": FakeGenerator(cached=1),
        "odd-chat": FakeGenerator(ODD_PIECES),
        "calls": FakeGenerator((), calls=(("weather", '{"city": "Paris"}'), ("time", "{}"))),
        "stuck": FakeGenerator(("never",), delay_s=60.0),
        "slow-chat": FakeGenerator(("a",) * 1000, delay_s=0.02),
        "breaks": FakeGenerator(("so", " far", "!"), error=ModelFailed("the replica died"), fails_at=2),
        "buggy": FakeGenerator(("so", " far"), error=ZeroDivisionError("a bug of ours"), fails_at=1),
        "refuses": FakeGenerator(error=InvalidInput("the prompt has 9,000 tokens, the context 8,192 (at $.messages)")),
        "too-small": FakeGenerator(error=ContextExceeded("the context is 8,192 tokens, the prompt has 9,000")),
        "full": FakeGenerator(error=Overloaded("too many wait; retry later", 2.0)),
    }


def body(name: str = "x", datatype: str = "FP32", shape: object = (1, 4), data: object = (1, 2, 3, 4)) -> dict:
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}
