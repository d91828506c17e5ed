"""foretell's own engine in this process: the prompts of a table, as many at a time as a job has, nothing around it."""

import os
import sys
import time

import pyarrow.parquet as pq

from foretell.batch.prompts import PromptQuestion
from foretell.batch.spec import Prompting
from foretell.core.errors import ForetellError
from foretell.core.generation import Finished
from foretell.core.settings import GenerationSettings, ReplicaSettings
from foretell.fleet.generate_loop import warm_up
from foretell.runtimes.loading import load_generator
from foretell.store.store import Store

source, template, tokens, chat = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "chat"
with Store.open(os.environ["FORETELL_HOME"]) as store:
    package = store.fetch(store.versions("smollm2")[-1])
generator = load_generator(package, ReplicaSettings(threads=os.cpu_count() or 1))
warm_up(generator)
question = PromptQuestion(Prompting(template, max_tokens=tokens, chat=chat))
waiting = [request for request in question.requests(pq.read_table(source), "batch") if request is not None][::-1]
start, rows, running, said = time.perf_counter(), len(waiting), 0, 0
while waiting or running:
    while waiting and running < GenerationSettings().slots:
        generator.submit(len(waiting), waiting.pop())
        running += 1
    for _, event in generator.step():
        if isinstance(event, ForetellError):
            raise event
        if isinstance(event, Finished):
            running -= 1
            said += event.completion_tokens
print(rows / (time.perf_counter() - start), said)
generator.close()
