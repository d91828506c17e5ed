"""onnxruntime from Parquet to Parquet, as an expert writes it: whole columns in, whole columns out, batch by batch."""

import sys
import time

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq

model, source, target, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
shapes = {i.name: [d if isinstance(d, int) else -1 for d in i.shape[1:]] for i in session.get_inputs()}
names = [output.name for output in session.get_outputs()]
start, rows, writer = time.perf_counter(), 0, None
for part in pq.ParquetFile(source).iter_batches(batch):
    n = part.num_rows
    feed = {k: part.column(k).flatten().to_numpy(zero_copy_only=False).reshape(n, *s) for k, s in shapes.items()}
    columns = {"id": part.column("id")}
    for name, value in zip(names, session.run(None, feed), strict=True):
        flat = pa.array(np.asarray(value).reshape(-1))
        offsets = np.arange(n + 1, dtype=np.int32) * (len(flat) // n)
        columns[name] = flat if value.ndim == 1 else pa.ListArray.from_arrays(offsets, flat)
    table = pa.table(columns)
    writer = writer or pq.ParquetWriter(target, table.schema, compression="zstd", use_dictionary=False)
    writer.write_table(table)
    rows += n
if writer:
    writer.close()
print(rows / (time.perf_counter() - start))
