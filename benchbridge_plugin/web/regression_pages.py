"""The dashboard's pages of regressions: the list, and one with its history as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from flask import request
from flask.typing import ResponseReturnValue

from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.ledger import STATES
from benchbridge_plugin.regressions.history import METRICS
from benchbridge_plugin.regressions.picture import picture
from benchbridge_plugin.regressions.words import configuration_of, side_of
from benchbridge_plugin.web.arguments import InvalidArgument, query, source_of
from benchbridge_plugin.web.drawing import page

_SHOWN = 50
_LARGEST_ID = 2**31 - 1


class RegressionPages:
    """`common` and `head` of a page: see Pages."""

    def __init__(self, bridge: BenchmarkPredictivePerformanceBridge) -> None:
        self._bridge = bridge

    def listed(self, common: Mapping[str, Any], head: Mapping[str, Any]) -> ResponseReturnValue:
        asked = {name: text for name, text in request.args.items() if text}  # a form sends what is left empty, too
        given = query(request, {**dict.fromkeys(("source", "state", "model", "hardware", "metric", "said"), str), "before": int}, asked)
        given.pop("said", None)
        before, source = given.pop("before", None), source_of(given, self._bridge.source_names())
        for name, known in (("state", STATES), ("metric", tuple(METRICS))):
            if given.get(name, known[0]) not in known:
                raise InvalidArgument(f"There is no {name} {given[name]!r}.", guidance=f"Choose one of: {', '.join(known)}.")
        found = self._bridge.regressions(source=source, limit=_SHOWN, cursor=None if before is None else str(before), **given)
        again = {**given, **({} if source is None else {"source": source})}
        return page(
            "regressions.html",
            **common,
            **head,
            rows=found.rows,
            chosen=given,
            states=STATES,
            metrics=list(METRICS),
            begun=before is not None,
            following=urlencode({**again, "before": found.next_cursor}) if found.next_cursor else None,
            configuration=configuration_of,
            side=side_of,
            watched=self._bridge.config.regressions,
        )

    def one(self, common: Mapping[str, Any], head: Mapping[str, Any], regression_id: int) -> ResponseReturnValue:
        query(request, {"said": str})
        found = self._bridge.regression(min(regression_id, _LARGEST_ID))
        if found is None:
            detail = f"There is no regression {regression_id}."
            return page("error.html", 404, **common, **head, title="No such regression", detail=detail, guidance="")
        return page(
            "regression.html", **common, **head, regression=found, picture=picture(found), configuration=configuration_of, side=side_of
        )
