"""JSON text as it lies in a database, made fit for an answer."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_stored_json(text: str | None) -> Any:
    """The value in the text, with NaN and infinity, which DuckDB lets into JSON, as null. Text that is not JSON stays
    text.
    """
    if text is None:
        return None
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return text


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None
