"""The openai client, unchanged, against /v1; and what /v1 refuses."""

import json

import numpy as np
import openai
import pytest


@pytest.fixture
def client(shared):
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.mark.parametrize("encoding", ["float", "base64", openai.NOT_GIVEN])
def test_the_openai_client_gets_embeddings(client, encoding):
    answer = client.embeddings.create(model="minilm", input=["four", "seven77"], encoding_format=encoding)
    vectors = [e.embedding for e in answer.data]
    if encoding == "base64":
        import base64

        vectors = [np.frombuffer(base64.b64decode(v), dtype="<f4").tolist() for v in vectors]
    assert vectors == [[4.0, 3.0, 4.0], [7.0, 3.0, 4.0]]
    assert [e.index for e in answer.data] == [0, 1]
    assert answer.usage.total_tokens == 3


def test_one_text_is_a_list_of_one(client):
    assert len(client.embeddings.create(model="minilm@1", input="four").data) == 1


def test_dimensions_cut_and_normalise(client):
    (one,) = client.embeddings.create(model="minilm", input="four", dimensions=2).data
    np.testing.assert_allclose(one.embedding, [0.8, 0.6], rtol=1e-6)


def test_the_openai_client_lists_models(client):
    assert "minilm" in [m.id for m in client.models.list()]
    assert client.models.retrieve("minilm").id == "minilm"


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "nobody", "input": "a"}, openai.NotFoundError, "nobody"),
        ({"model": "double", "input": "a"}, openai.BadRequestError, "/v2/models/double/infer"),
        ({"model": "chat", "input": "a"}, openai.BadRequestError, "ask it at /v1/chat/completions"),
        ({"model": "minilm", "input": ""}, openai.BadRequestError, "empty"),
        ({"model": "minilm", "input": []}, openai.BadRequestError, "list of texts"),
        ({"model": "minilm", "input": [1, 2]}, openai.BadRequestError, "token ids"),
        ({"model": "minilm", "input": [[1, 2]]}, openai.BadRequestError, "token ids"),
        ({"model": "minilm", "input": ["a"] * 2049}, openai.BadRequestError, "2048"),
        ({"model": "minilm", "input": "a", "dimensions": 4}, openai.BadRequestError, "1 to 3"),
        ({"model": "minilm", "input": "a", "encoding_format": "hex"}, openai.BadRequestError, "base64"),
    ],
)
def test_errors_come_in_openais_shape_with_our_words(client, fields, error, words):
    with pytest.raises(error, match=words) as caught:
        client.embeddings.create(**fields)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model":"minilm"}', b'{"model":1,"input":"a"}', b"\xff"])
async def test_bodies_that_are_no_requests_are_refused(http, raw):
    response = await http.request("POST", "/v1/embeddings", raw)
    assert response.status == 400
    assert json.loads(response.body)["error"]["type"] == "invalid_request_error"
