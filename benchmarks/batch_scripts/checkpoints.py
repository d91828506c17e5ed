"""What committing costs a job: seconds of syncing, renaming and recording, by the clock and of the processor.

They run beside the scoring in threads of their own, so that the share by the clock is more than a job is slowed down.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretell.app.batch import BatchService, submit
from foretell.app.config import load_config
from foretell.batch import output
from foretell.batch.protocol import Publish
from foretell.batch.source import Source
from foretell.batch.spec import JobSpec, Reading, Writing
from foretell.core.reference import parse_reference
from foretell.store.jobs import Jobs
from foretell.store.store import Store

spent = {"clock": 0.0, "processor": 0.0}


def timed(call: Callable[..., Any], applies: Callable[..., bool] = lambda *given: True) -> Callable[..., Any]:
    def wrapped(*given: Any) -> Any:
        began, busy = time.perf_counter(), time.thread_time()
        try:
            return call(*given)
        finally:
            if applies(*given):
                spent["clock"] += time.perf_counter() - began
                spent["processor"] += time.thread_time() - busy

    return wrapped


output._sync = timed(output._sync)
output.OutputFolder.take = timed(output.OutputFolder.take, lambda folder, step, contents: isinstance(step, Publish))
Jobs.record = timed(Jobs.record)

model, source, target = sys.argv[1:4]
with Store.open(os.environ["FORETELL_HOME"]) as store:
    info = store.resolve(parse_reference(model))
    spec = JobSpec(str(info), info.digest, Reading((source,)), Writing(target, keep=("id",)))
    found = Source((source,))
    report = asyncio.run(BatchService(load_config(), store).run(submit(store, spec, found), found))
assert Path(target, "_report.json").exists()
print(spent["clock"] / report.run_s, spent["processor"] / report.run_s, report.parts)
