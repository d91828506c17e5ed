"""OpenVINO GenAI's continuous batching pipeline in process: takes a job a line over a local socket, runs it, answers
with the time of every token. No HTTP and no text lie between the pipeline and the clock.

A job is {"requests": [[token ids, output tokens], …], "streams": n}: n requests at a time, the next as one ends.
The answer lists, for each request, when it was sent and when each of its tokens could be read, in seconds.
"""

import json
import os
import socket
import time

import numpy
import openvino
import openvino_genai


def pipeline() -> openvino_genai.ContinuousBatchingPipeline:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = int(os.environ.get("BENCH_CACHE_GB", "2"))
    scheduler.max_num_batched_tokens = int(os.environ.get("BENCH_BATCH", "256"))
    scheduler.dynamic_split_fuse = os.environ.get("BENCH_SPLIT_FUSE", "1") == "1"
    scheduler.enable_prefix_caching = True
    properties = {"INFERENCE_NUM_THREADS": int(os.environ.get("BENCH_THREADS", "2"))}
    properties |= json.loads(os.environ.get("BENCH_PROPERTIES", "{}"))
    return openvino_genai.ContinuousBatchingPipeline(os.environ["BENCH_MODEL"], scheduler, "CPU", properties)


def greedy(tokens: int) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False
    return config


class Jobs:
    """Runs jobs; every request of this process has a number of its own."""

    def __init__(self) -> None:
        self.pipeline = pipeline()
        self.count = 0

    def run(self, requests: list, streams: int) -> list[dict]:
        waiting = list(enumerate(requests))[::-1]
        answers: list[dict] = [{} for _ in requests]
        running: dict = {}
        start = time.perf_counter()
        while waiting or running:
            while waiting and len(running) < streams:
                number, (ids, tokens) = waiting.pop()
                answers[number] = {"sent": time.perf_counter() - start, "times": []}
                tensor = openvino.Tensor(numpy.array([ids], dtype=numpy.int64))
                running[number] = self.pipeline.add_request(self.count, tensor, greedy(tokens))
                self.count += 1
            self.pipeline.step()
            now = time.perf_counter() - start
            for number, handle in list(running.items()):
                while handle.can_read():
                    for output in handle.read().values():
                        answers[number]["times"] += [now] * len(output.generated_ids)
                if len(answers[number]["times"]) >= requests[number][1]:
                    del running[number]
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
