"""Calls of the Predictive Performance API that more than one file of tests makes."""

from __future__ import annotations

from typing import Any

from .conftest import Client

API = "/api/predictive-performance"
Measurement = dict[str, Any]


def done(client: Client, answer: Any) -> dict[str, Any]:
    """The result of the task that an answer names."""
    assert answer.status_code == 200, answer.json
    assert answer.json["status"] == "pending"
    task = client.get(f"{API}/task/{answer.json['task_id']}").json
    assert task["status"] == "completed", task
    result: dict[str, Any] = task["result"]
    return result


def record(client: Client, measurement: Measurement, **headers: str) -> dict[str, Any]:
    return done(client, client.post(f"{API}/record-measurement", json=measurement, headers=headers))
