"""foretell's generator in process, asked as the OpenVINO app is: a job a line over a local socket, no HTTP between the
engine and the clock. `BENCH_DRAFTS=0` takes speculation away. Runs in foretell's own environment.

A job is {"requests": [[token ids, output tokens], …], "streams": n}; the answer lists when each request was sent and
when each of its tokens came, in seconds.
"""

import json
import os
import socket
import time

from foretell.core.errors import ForetellError
from foretell.core.generation import Finished, GenerateRequest, Piece, Sampling, Started, Stops
from foretell.core.settings import ReplicaSettings
from foretell.llm import loading
from foretell.llm.speculate import NoDrafter
from foretell.store.store import Store


class Jobs:
    """Runs jobs; every request of this process has a number of its own."""

    def __init__(self) -> None:
        if os.environ.get("BENCH_DRAFTS", "1") == "0":
            loading.NGramDrafter = NoDrafter
        store = Store.open(os.environ["FORETELL_HOME"])
        package = store.fetch(store.versions("smollm2")[-1])
        store.close()
        threads = int(os.environ.get("BENCH_THREADS", "2"))
        self.generator = loading.open_generator(package, ReplicaSettings(threads=threads))
        self.count = 0

    def run(self, requests: list, streams: int) -> list[dict]:
        waiting = list(enumerate(requests))[::-1]
        answers: list[dict] = [{} for _ in requests]
        running: dict[int, int] = {}
        start = time.perf_counter()
        while waiting or running:
            while waiting and len(running) < streams:
                number, (ids, tokens) = waiting.pop()
                answers[number] = {"sent": time.perf_counter() - start, "times": [], "cached": 0}
                stops = Stops(max_tokens=tokens, ignore_eos=True)
                self.generator.submit(self.count, GenerateRequest(ids, Sampling(temperature=0.0), stops))
                running[self.count] = number
                self.count += 1
            events = self.generator.step()
            now = time.perf_counter() - start
            for request, event in events:
                if isinstance(event, ForetellError):
                    raise event
                if isinstance(event, Started):
                    answers[running[request]]["cached"] = event.cached_tokens
                if isinstance(event, Piece):
                    answers[running[request]]["times"] += [now] * len(event.tokens)
                if isinstance(event, Finished):
                    del running[request]
        return answers


def serve() -> None:
    jobs = Jobs()
    with socket.create_server(("127.0.0.1", int(os.environ["BENCH_PORT"]))) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as lines:
                for line in lines:
                    job = json.loads(line)
                    lines.write(json.dumps(jobs.run(job["requests"], job["streams"])) + "\n")
                    lines.flush()


if __name__ == "__main__":
    serve()
