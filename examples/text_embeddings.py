"""Sentences to vectors with the openai client. Needs the packages of requirements/models.txt, and openai."""

import tempfile
from pathlib import Path

import numpy as np
import openai

from examples.demo_models import minilm
from examples.serving import foretell, serving

SENTENCES = ["a cat sleeps on the sofa", "the kitten naps on a couch", "shares fell after the report"]

with tempfile.TemporaryDirectory() as folder:
    source = minilm(Path(folder))  # model.onnx, and tokenizer.json: enough to make it a text embedder
    store = str(Path(folder, "store"))
    foretell("add", "minilm", str(source), "--store", store)

    with serving("minilm", "--store", store) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        answer = client.embeddings.create(model="minilm", input=SENTENCES)

vectors = np.array([item.embedding for item in answer.data])
likeness = vectors @ vectors.T
print(f"cat and kitten: {likeness[0, 1]:.2f}; cat and shares: {likeness[0, 2]:.2f}")
assert likeness[0, 1] > likeness[0, 2]
