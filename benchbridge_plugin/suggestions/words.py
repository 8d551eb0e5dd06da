"""What the rules found, in words: a suggestion for each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchbridge_plugin.suggestions.rules import ENOUGH_SCORED, ROWS_NAMED
from benchbridge_plugin.suggestions.suggestion import Suggestion

_LONGEST = 80  # characters of a name in a sentence
_Row = Mapping[str, Any]


def suggestion_of(code: str, row: _Row) -> Suggestion:
    """The suggestion that a row of a rule stands for."""
    says, figures, names = _TOLD[code](row)
    length: int | None = row.get("sequence_length") or None
    place = {"model": row["model"], "hardware": row["hardware"], "device": row["device"], "mode": row.get("mode")}
    chosen: dict[str, Any] = {"precision": row.get("precision"), "batch_size": row.get("batch_size"), "sequence_length": length, **names}
    rests_on, results = _rows(row)
    return Suggestion(
        code,
        _where(code, row, length),
        says,
        float(row["size"]),
        **place,
        variant=row.get("variant", ""),
        **chosen,
        rests_on=rests_on,
        results=results,
        figures=figures,
    )


def _lower_precision(row: _Row) -> tuple[str, dict[str, Any], dict[str, Any]]:
    example, shapes = row["example"], row["shapes"]
    lower, wider = _shown(row["precision"]), _shown(row["from_precision"])
    shape = {"batch_size": example["batch_size"], "sequence_length": example["sequence_length"] or None}
    measured = f"{_number(example['after'])} against {_number(example['before'])} items/s"
    at = f"batch {shape['batch_size']}" + (f", length {shape['sequence_length']}" if shape["sequence_length"] else "")
    if shapes == 1:
        says = f"{lower} ran {_times(row['ratio'])} as fast as {wider} at {at}, {measured}"
    else:
        says = (
            f"{lower} ran {_times(row['ratio'])} as fast as {wider} at the median of {shapes} shapes that both were measured at ({at}: {measured}); "
            f"it was clearly faster at {row['clear_shapes'] if row['clear_shapes'] < shapes else 'all'} of them"
        )
        says += f" and slower at {row['slower_shapes']}" if row["slower_shapes"] else ""
    says += "." if row["also_used"] else f". It is not used: the newest results are not in {lower}."
    figures = {
        "from_precision": row["from_precision"],
        "shapes": shapes,
        "clear_shapes": row["clear_shapes"],
        "slower_shapes": row["slower_shapes"],
        "used": row["also_used"],
        "example": {**shape, "before": example["before"], "after": example["after"]},
    }
    return says, figures, shape if shapes == 1 else {"batch_size": None, "sequence_length": None}


def _smaller_batch(row: _Row) -> tuple[str, dict[str, Any], dict[str, Any]]:
    says = (
        f"batch {row['batch_size']} reaches {_percent(row['after'] / row['peak'])} of the peak ({_number(row['peak'])} items/s at batch "
        f"{row['peak_batch']}) in {_percent(row['after_ms'] / row['before_ms'])} of its latency: {_number(row['after_ms'])} instead of "
        f"{_number(row['before_ms'])} ms."
    )
    if not row["also_used"]:
        says += " It is not used: the newest results are of other batch sizes."
    return says, {**_line(row), "latency_before": row["before_ms"], "latency_after": row["after_ms"], "used": row["also_used"]}, {}


def _larger_batch(row: _Row) -> tuple[str, dict[str, Any], dict[str, Any]]:
    says = (
        f"the newest results, at batch {row['from_batch']}, reach {_percent(row['before'] / row['peak'])} of the peak that was measured at batch "
        f"{row['batch_size']} ({_number(row['before'])} of {_number(row['peak'])} items/s). A batch takes {_number(row['after_ms'])} ms there "
        f"instead of {_number(row['before_ms'])}."
    )
    figures = {**_line(row), "from_batch": row["from_batch"], "latency_before": row["before_ms"], "latency_after": row["after_ms"]}
    return says, {**figures, "used": False}, {}


def _noisy(row: _Row) -> tuple[str, dict[str, Any], dict[str, Any]]:
    says = (
        f"{row['n']} repeats lie between {_number(row['lowest'])} and {_number(row['highest'])} items/s (coefficient of variation "
        f"{_percent(row['size'])}): too far apart to conclude anything from. Measure again."
    )
    return says, {"lowest": row["lowest"], "highest": row["highest"], "repeats": list(row["figures"])}, {}


def _needs_measurements(row: _Row) -> tuple[str, dict[str, Any], dict[str, Any]]:
    more = ENOUGH_SCORED - row["measured"]
    says = (
        f"predicted throughput was {_percent(row['error'])} off at the median of {row['n']} results, and no more than {row['measured']} are measured "
        f"here: it needs {more} more measurement{'' if more == 1 else 's'}, to make {ENOUGH_SCORED}."
    )
    return says, {"scored": row["n"], "measured": row["measured"], "more": more, "median_error": row["error"]}, {}


def _predicted_well(row: _Row) -> tuple[str, dict[str, Any], dict[str, Any]]:
    says = (
        f"predicted throughput was within {_percent(row['error'])} at the median of {row['n']} results that the predictor had not been shown, and within "
        f"{_percent(row['most'])} for nine of ten."
    )
    return says, {"scored": row["n"], "measured": row["measured"], "median_error": row["error"], "p90_error": row["most"]}, {}


_TOLD: Mapping[str, Callable[[_Row], tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "lower_precision": _lower_precision,
    "larger_batch": _larger_batch,
    "smaller_batch": _smaller_batch,
    "needs_measurements": _needs_measurements,
    "noisy": _noisy,
    "predicted_well": _predicted_well,
}


def _line(row: _Row) -> dict[str, Any]:
    """The batch sizes that were measured, for people to see where the suggested one is among them."""
    points = sorted(row["points"], key=lambda point: point["batch_size"])
    return {"peak_batch": row["peak_batch"], "peak": row["peak"], "throughput": row["after"], "points": points}


def _where(code: str, row: _Row, length: int | None) -> str:
    """Model, device and what of the configuration is the same for all that the suggestion is about."""
    parts = [f"{_shown(row['model'])} on {_shown(row['device'] or row['hardware'])}"]
    if row.get("mode"):
        parts.append(row["mode"])
    if code in ("larger_batch", "smaller_batch", "noisy"):
        parts.append(_shown(row["precision"]))
        parts += [f"batch {row['batch_size']}"] if code == "noisy" else []
        parts += [f"length {length}"] if length else []
    if row.get("varies"):  # the model was also measured there in another way
        parts.append(_shown(row["variant"].replace("; ", ", ")))
    return ", ".join(parts)


def _rows(row: _Row) -> tuple[Sequence[str], int]:
    """The results: first of all those whose figures are told."""
    if "example" in row:
        listed = [*row["example"]["ids"], *row["others"]]
    else:
        listed = [*row.get("own_ids", [])[:4], *row.get("peak_ids", [])[:4], *row.get("ids", [])]
    return tuple(dict.fromkeys(listed))[:ROWS_NAMED], int(row["rows"] if "rows" in row else row["n"])


def _shown(text: str) -> str:
    """A name of somebody's file on one line, and not too long."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= _LONGEST else f"{clean[: _LONGEST - 3]}..."


def _number(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1_000 else f"{value:,.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:,.1f} times" if ratio < 9.95 else f"{ratio:,.0f} times"


def _percent(share: float) -> str:
    """Whole, but where that would say all of it or none."""
    percent = 100 * share
    return f"{percent:.1f} %" if percent < 1 or 99 < percent < 100 else f"{percent:.0f} %"
