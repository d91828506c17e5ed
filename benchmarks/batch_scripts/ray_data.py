"""Ray Data's `map_batches` over a pool of actors, each with the model and one thread.

Reads and writes find logical CPUs beside the actors', or they would wait for each other. The clock starts when the last
actor has loaded the model.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import ray

model, source, target, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
loaded = Path(target + ".loaded")
loaded.mkdir()
cores = os.cpu_count() or 1


class Predict:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.shapes = {
            i.name: [d if isinstance(d, int) else -1 for d in i.shape[1:]] for i in self.session.get_inputs()
        }
        (loaded / str(os.getpid())).write_text(str(time.time()))

    def __call__(self, part: pa.Table) -> pa.Table:
        n = part.num_rows
        part = part.combine_chunks()
        flat = {k: part.column(k).combine_chunks().flatten().to_numpy(zero_copy_only=False) for k in self.shapes}
        feed = {k: flat[k].reshape(n, *shape) for k, shape in self.shapes.items()}
        columns = {"id": part.column("id")}
        for output, value in zip(self.session.get_outputs(), self.session.run(None, feed), strict=True):
            values = pa.array(np.asarray(value).reshape(-1))
            offsets = np.arange(n + 1, dtype=np.int32) * (len(values) // n)
            columns[output.name] = values if value.ndim == 1 else pa.ListArray.from_arrays(offsets, values)
        return pa.table(columns)


ray.init(num_cpus=2 * cores, include_dashboard=False, log_to_driver=False, logging_level="error")
ray.data.DataContext.get_current().enable_progress_bars = False
rows = ray.data.read_parquet(source)
count = pq.ParquetFile(source).metadata.num_rows  # Ray Data would count for ten seconds
pool = ray.data.ActorPoolStrategy(size=cores)
rows.map_batches(Predict, batch_size=batch, batch_format="pyarrow", compute=pool, num_cpus=1).write_parquet(target)
end = time.time()
print(count / (end - max(float(file.read_text()) for file in loaded.iterdir())))
ray.shutdown()
