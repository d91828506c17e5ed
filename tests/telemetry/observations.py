"""Observations for the telemetry tests."""

from typing import Any

from foretell.core.observation import Observation

NOON = 1_790_078_400.0  # 2026-09-22T12:00:00Z


def observation(**changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "model": "digits", "version": "3", "outcome": "done", "at": NOON, "total_s": 0.0031, "queue_s": 0.001,
        "compute_s": 0.002, "rows": 2, "batch_rows": 8, "cached": False, "protocol": "http", "request_id": "r1",
        "cost_dollars": 1e-6,
    }  # fmt: skip
    return Observation(**fields | changes)
