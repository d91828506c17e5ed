"""A scikit-learn model, from fit to endpoint: saved without pickle, converted to ONNX, proved equal, served."""

import tempfile
from pathlib import Path

import skops.io
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

import foretell
from examples.serving import ask, serving
from examples.serving import foretell as command

with tempfile.TemporaryDirectory() as folder:
    rows, kinds = load_iris(return_X_y=True)
    model = RandomForestClassifier(20, random_state=0).fit(rows, kinds)
    path = Path(folder, "iris.skops")
    skops.io.dump(model, path)

    store = str(Path(folder, "store"))
    print(command("add", "iris", str(path), "--store", store))

    with foretell.load("iris", store=store) as loaded:
        print("in this process:", loaded.predict(X=rows[[0, 60, 120]])["label"])

    with serving("iris", "--store", store) as url:
        print("from the server:", ask(url, "iris", rows[[0, 60, 120]].tolist())["label"])
