"""A real service with small models and the unchanged openai client before it, for the tests of its batches."""

import asyncio
import json
import threading
import time
from pathlib import Path

import openai
import uvloop

from foretell.app.config import load_config
from foretell.app.service import Service
from foretell.store.store import Store

TEXTS = """[signature]
inputs = [{ name = "text", datatype = "BYTES", shape = [-1] }]
outputs = [{ name = "vector", datatype = "FP32", shape = [-1, 2] }]
"""
EMBED = """
import time
def predict(text):
    if (text == b"boom").any(): raise ValueError("boom")
    if any(each.startswith(b"slow") for each in text): time.sleep(0.05)
    return {"vector": np.array([[len(each), 1.0] for each in text], np.float32)}
"""
TALK = """
runtime = "llm"
artifact = "model.onnx"
[signature]
inputs = [{ name = "text_input", datatype = "BYTES", shape = [1] }]
outputs = [{ name = "text_output", datatype = "BYTES", shape = [1] }]
"""
EMBEDDINGS, COMPLETIONS, CHAT = "/v1/embeddings", "/v1/completions", "/v1/chat/completions"


def call(custom_id: str, url: str = EMBEDDINGS, method: str = "POST", **body) -> dict:
    return {"custom_id": custom_id, "method": method, "url": url, "body": {"model": "embed", **body}}


def calls(texts: list[str], **more) -> list[dict]:
    return [call(f"c{number}", input=text, **more) for number, text in enumerate(texts)]


def jsonl(lines: list[dict]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


class Helper:
    """What tests do with an openai client."""

    def __init__(self, url: str) -> None:
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)

    def upload(self, content: bytes | list[dict], purpose: str = "batch", name: str = "calls.jsonl"):
        raw = content if isinstance(content, bytes) else jsonl(content)
        return self.client.files.create(file=(name, raw), purpose=purpose)

    def create(self, content: bytes | list[dict], endpoint: str = EMBEDDINGS, window: str = "24h", **more):
        file = self.upload(content)
        return self.client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window, **more)

    def until(self, batch, *statuses: str, done: int = 0):
        """Ask until it has one of these statuses (or, without any, is over), and so many calls are answered."""
        wanted = statuses or ("completed", "failed", "expired", "cancelled")
        end = time.monotonic() + 30
        while True:
            batch = self.client.batches.retrieve(batch.id)
            if batch.status in wanted and batch.request_counts.completed >= done:
                return batch
            assert time.monotonic() < end, f"still {batch.status} with {batch.request_counts}"
            time.sleep(0.02)

    def run(self, content: bytes | list[dict], *arguments, **more):
        return self.until(self.create(content, *arguments, **more))

    def lines(self, name: str | None) -> list[dict]:
        """The lines of a file of answers, by custom_id; none where there is no file."""
        if name is None:
            return []
        return [json.loads(line) for line in self.client.files.content(name).text.splitlines()]


class Served(Helper):
    """The service in a loop of a thread of its own, over a store."""

    def __init__(self, store: Store, *models: str, queue: int = 4096, **more) -> None:
        batching = {"max_batch_size": 4, "max_queue_rows": queue}
        settings = {"replicas": {"count": 1, "threads": 1}, "batching": batching}
        flags = {
            "serve": list(models),
            "server": {"port": 0, "grpc_port": -1, "trust_code": True},
            "observations": {"access_log": ""},
            "models": dict.fromkeys(models, settings),
        }
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        config = load_config(flags=flags, environment={})
        self.service = self.call(self._make(config, store, **more))
        self.call(self.service.start())
        super().__init__(f"http://127.0.0.1:{self.service.http_port}")

    async def _make(self, config, store: Store, **more) -> Service:
        return Service(config, store, **more)

    def begin(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine):
        return self.begin(coroutine).result(60)

    def close(self) -> None:
        self.client.close()
        self.call(self.service.stop(1.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def add_talk(store: Store, folder: Path) -> None:
    """ "talk": a language model; its replicas have to be those of tests.fleet.scripted."""
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(TALK)
    (folder / "model.onnx").write_bytes(b"nothing")
    store.add("talk", folder)
