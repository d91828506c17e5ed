"""pandas + onnxruntime, as most people write it: read everything, predict in batches, write everything."""

import sys
import time

import numpy as np
import onnxruntime as ort
import pandas as pd

model, source, target, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
inputs = {i.name: ([d if isinstance(d, int) else -1 for d in i.shape[1:]], KINDS[i.type]) for i in session.get_inputs()}
start = time.perf_counter()
frame = pd.read_parquet(source)
outputs: dict = {output.name: [] for output in session.get_outputs()}
for at in range(0, len(frame), batch):
    part = frame.iloc[at : at + batch]
    feed = {n: np.stack(part[n].to_numpy()).astype(t).reshape(len(part), *shape) for n, (shape, t) in inputs.items()}
    for name, value in zip(outputs, session.run(None, feed), strict=True):
        outputs[name] += list(value)
pd.DataFrame({"id": frame["id"], **outputs}).to_parquet(target)
print(len(frame) / (time.perf_counter() - start))
