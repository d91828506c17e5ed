"""The same request through both protocols gets the same answer: the same bits, or an error of the same kind."""

import asyncio

import numpy as np
import pytest
import tritonclient.http as triton_http
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foretell.core.errors import ForetellError, Overloaded
from foretell.core.reference import Reference
from foretell.core.tensor import DTYPES, Tensor, datatype_of, from_wire, to_wire
from foretell.server import oip_pb2
from foretell.server.app import App
from foretell.server.grpc_service import InferenceService
from foretell.testing import Client, FakePlane
from tests.server.models import models

PARAMETERS = ({}, {"priority": 2}, {"timeout": 5_000_000}, {"sticky": "ann"})


class Both:
    """One plane behind both entrances. Each ask gives outputs by name, or the HTTP status of its error."""

    def __init__(self) -> None:
        self.plane = FakePlane(*models())
        self.http = Client(App(self.plane))
        self.grpc = InferenceService(self.plane, "1", 4)

    def over_http(self, model: str, inputs: dict[str, Tensor], outputs: list[str], parameters: dict):
        return asyncio.run(self._over_http(model, inputs, outputs, parameters))

    async def _over_http(self, model, inputs, outputs, parameters):
        given = [triton_http.InferInput(n, list(a.shape), datatype_of(a)) for n, a in inputs.items()]
        for tensor, array in zip(given, inputs.values(), strict=True):
            tensor.set_data_from_numpy(array, binary_data=True)
        wanted = [triton_http.InferRequestedOutput(name, binary_data=True) for name in outputs] or None
        make = triton_http.InferenceServerClient.generate_request_body
        body, size = make(given, outputs=wanted, parameters={k: v for k, v in parameters.items() if k == "sticky"},
                          priority=parameters.get("priority", 0), timeout=parameters.get("timeout"))  # fmt: skip
        headers = {} if size is None else {"inference-header-content-length": str(size)}
        response = await self.http.request("POST", f"/v2/models/{model}/infer", body, headers)
        if response.status != 200:
            return response.status
        lines = bytes(response.headers).lower().split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in lines if line)
        header = fields.get(b"inference-header-content-length")
        body = b"".join(response.body) if isinstance(response.body, list | tuple) else bytes(response.body)
        parse = triton_http.InferenceServerClient.parse_response_body
        result = parse(body, header_length=None if header is None else int(header))
        answer = result.get_response()
        return {o["name"]: result.as_numpy(o["name"]) for o in answer["outputs"]}, answer["model_version"]

    def over_grpc(self, model: str, inputs: dict[str, Tensor], outputs: list[str], parameters: dict):
        message = oip_pb2.ModelInferRequest(model_name=model)
        for name, array in inputs.items():
            message.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            message.raw_input_contents.append(bytes(to_wire(array)))
        for name in outputs:
            message.outputs.add(name=name)
        for name, value in parameters.items():
            kind = "string_param" if isinstance(value, str) else "int64_param"
            setattr(message.parameters[name], kind, value)
        try:
            answer = asyncio.run(self.grpc.infer(message, None))
        except ForetellError as error:
            return error.http_status
        tensors = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return {t.name: from_wire(raw, t.datatype, tuple(t.shape)) for t, raw in tensors}, answer.model_version


def echo_of(datatype: str) -> str:
    return "text" if datatype == "BYTES" else f"echo-{datatype}"


@st.composite
def rows(draw: st.DrawFn) -> tuple[str, Tensor]:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    (spec,) = next(m for m in models() if m.name == echo_of(datatype)).signature.inputs
    shape = tuple(draw(st.integers(1, 4)) if d < 0 else d for d in spec.shape)
    if datatype == "BYTES":
        count = int(np.prod(shape))
        array = np.empty(count, dtype=object)
        array[:] = draw(st.lists(st.binary(max_size=8), min_size=count, max_size=count))
        return datatype, array.reshape(shape)
    return datatype, draw(hnp.arrays(DTYPES[datatype], shape))


@settings(deadline=None, max_examples=80)
@given(rows(), st.sampled_from(PARAMETERS))
def test_the_same_rows_get_the_same_bits(case, parameters):
    datatype, array = case
    both = Both()
    (name,) = (s.name for s in both.plane.describe(Reference(echo_of(datatype))).signature.inputs)
    one = both.over_http(echo_of(datatype), {name: array}, [], parameters)
    two = both.over_grpc(echo_of(datatype), {name: array}, [], parameters)
    assert one[1] == two[1]
    assert one[0].keys() == two[0].keys()
    for key in one[0]:
        assert datatype_of(one[0][key]) == datatype_of(two[0][key]) == datatype
        np.testing.assert_array_equal(one[0][key], two[0][key])
    first, second = both.plane.requests
    assert (first.priority, first.sticky, first.rows) == (second.priority, second.sticky, second.rows)
    assert (first.deadline is None) == (second.deadline is None)


X = np.array([[1, 2, 3, 4]], dtype=np.float32)

BAD = {
    "unknown model": ("nothing", {"x": X}, [], {}),
    "unknown version": ("double@9", {"x": X}, [], {}),
    "not a name": ("a$b", {"x": X}, [], {}),
    "unknown input": ("double", {"z": X}, [], {}),
    "extra input": ("double", {"x": X, "z": X}, [], {}),
    "wrong datatype": ("double", {"x": X.astype(np.int32)}, [], {}),
    "wrong shape": ("double", {"x": X[:, :3]}, [], {}),
    "unknown output": ("double", {"x": X}, ["nothing"], {}),
    "no rows": ("double", {"x": X[:0]}, [], {}),
    "deadline passed": ("endless", {"x": X}, [], {"timeout": 10_000}),
    "model raises": ("boom", {"x": X}, [], {}),
    "model is loading": ("loading", {"x": X}, [], {}),
}


@pytest.mark.parametrize("case", BAD)
def test_the_same_mistake_is_the_same_kind_of_error(case):
    both = Both()
    status = both.over_http(*BAD[case])
    assert isinstance(status, int)
    assert both.over_grpc(*BAD[case]) == status


def test_an_overload_is_the_same_kind_of_error():
    both = Both()
    both.plane.refuse = Overloaded("the queue is full", 1.0)
    assert both.over_http("double", {"x": X}, [], {}) == both.over_grpc("double", {"x": X}, [], {}) == 429


def test_both_name_the_same_models_and_tensors():
    both = Both()
    for model in models():
        over_http = asyncio.run(both.http.get(f"/v2/models/{model.name}"))
        assert over_http.status == 200
        message = oip_pb2.ModelMetadataRequest(name=model.name)
        metadata = asyncio.run(
            both.grpc.routes()["/inference.GRPCInferenceService/ModelMetadata"].answer(message, None)
        )
        text = bytes(over_http.body).decode()
        assert f'"{metadata.name}"' in text
        for tensor in [*metadata.inputs, *metadata.outputs]:
            assert f'"{tensor.name}"' in text
