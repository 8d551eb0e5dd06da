"""The dashboard's page of suggestions: each sentence with its figures as a small picture, and links to the results it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from flask import request
from flask.typing import ResponseReturnValue

from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.suggestions.picture import HEIGHT, WIDTH, picture
from benchbridge_plugin.suggestions.suggestion import CODES
from benchbridge_plugin.web.arguments import InvalidArgument, query, source_of
from benchbridge_plugin.web.drawing import page

_SHOWN_EACH = 10
_SHOWN = 100
_IDS_SHOWN = 4
_PATIENCE_S = 1.5  # that a page waits for a file that was never read; then it says so, and offers to look again
_TITLES = {
    "lower_precision": "A lower precision was faster",
    "larger_batch": "A larger batch was measured to do much more",
    "smaller_batch": "A smaller batch does nearly as much, in less time",
    "needs_measurements": "Predictions are off, and little is measured",
    "noisy": "Repeats are too far apart",
    "predicted_well": "Predictions have held",
}
_REMARKS = {
    "lower_precision": "Whether a model answers as well in it is not measured here.",
    "larger_batch": "In training the batch size is a part of the recipe.",
}


class SuggestionPages:
    """`common` and `head` of a page: see Pages."""

    def __init__(self, bridge: BenchmarkPredictivePerformanceBridge) -> None:
        self._bridge = bridge

    def listed(self, common: Mapping[str, Any], head: Mapping[str, Any]) -> ResponseReturnValue:
        asked = {name: text for name, text in request.args.items() if text}  # a form sends what is left empty, too
        given = query(request, dict.fromkeys(("source", "code", "model", "hardware"), str), asked)
        source = source_of(given, self._bridge.source_names())
        code = given.get("code")
        if code is not None and code not in CODES:
            raise InvalidArgument(f"There is no code {code!r}.", guidance=f"Choose one of: {', '.join(CODES)}.")
        limit = _SHOWN_EACH if code is None else _SHOWN
        found = self._bridge.suggestions(**given, source=source, limit=limit, each=True, patience_s=_PATIENCE_S, newest=False)
        here = {**given, **({} if source is None else {"source": source})}
        groups = [
            {
                "code": name,
                "title": _TITLES[name],
                "remark": _REMARKS.get(name, ""),
                "rows": rows,
                "more": found["counts"][name] - len(rows),
                "all": urlencode({**here, "code": name}) if code is None else None,
            }
            for name in CODES
            if (rows := [row for row in found["suggestions"] if row["code"] == name])
        ]
        return page(
            "suggestions.html",
            **common,
            **head,
            groups=groups,
            chosen=given,
            codes=_TITLES,
            total=found["total"],
            read_at=found["read_at"],
            note=found["note"],
            here=urlencode(here),
            picture=picture,
            size=(WIDTH, HEIGHT),
            ids_shown=_IDS_SHOWN,
        )
