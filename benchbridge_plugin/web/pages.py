"""The dashboard's pages. Each asks the bridge for the rows that it shows and no more: it must not take longer the more results there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from flask import Response, redirect, request, url_for
from flask.typing import ResponseReturnValue

from benchbridge_plugin import accuracy
from benchbridge_plugin.accuracy import FIGURES, PREDICTORS
from benchbridge_plugin.as_json import result_as_json
from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.charts import accounting_bar, cell_level, history, trend
from benchbridge_plugin.errors import BridgeError
from benchbridge_plugin.model import ACCOUNTED, STATE_NAMES
from benchbridge_plugin.web import export
from benchbridge_plugin.web.arguments import InvalidArgument, query, source_of, within
from benchbridge_plugin.web.drawing import page
from benchbridge_plugin.web.regression_pages import RegressionPages
from benchbridge_plugin.web.session import Visitor
from benchbridge_plugin.web.suggestion_pages import SuggestionPages

_MODELS_SHOWN = 40
_HARDWARE_SHOWN = 12
_SENTENCES_SHOWN = 10
_REASONS_SHOWN = 100
_RESULTS_SHOWN = 50
_RUNS_SHOWN = 50
_RUNS_DRAWN = 60
_FILES_SHOWN = 100
_PLAN_SHOWN = 10
_PLAN_WITHIN_S = 1.0  # somebody waits for the page
_PLAN_KEPT_S = 600.0  # while no file has changed
_PREDICTORS = {"predicted": "the predictor", "nearest": "the nearest measured configuration", "roofline": "a roofline of the hardware"}
_NAMED = {name: state for state, name in STATE_NAMES.items()}
_TABLES: Mapping[str, Sequence[str]] = {
    "accounting": ("state", "results"),
    "coverage": ("model", "hardware", "total", *ACCOUNTED),
    "refusals": ("state", "code", "count", "reason"),
    "remarks": ("remark", "results"),
    "files": ("name", "path", "total", *ACCOUNTED, "note"),
    "story": ("name", "value", "unit", "column", "said", "why"),
    "contents": export.RESULT_COLUMNS[1:],
}


class Pages:
    """What the pages show. `common`: see common_of."""

    def __init__(self, bridge: BenchmarkPredictivePerformanceBridge) -> None:
        self._bridge = bridge
        self._regressions = RegressionPages(bridge)
        self._suggestions = SuggestionPages(bridge)

    # -- pages --------------------------------------------------------------------------------------------------------------------------

    def overview(self, common: Mapping[str, Any]) -> ResponseReturnValue:
        source = source_of(query(request, {"source": str, "said": str}), self._bridge.source_names())
        accounting = self._bridge.accounting(source=source)
        runs = self._bridge.runs(limit=_RUNS_DRAWN, source=source)
        return page(
            "overview.html",
            **common,
            **self._sources(source),
            accounting=accounting,
            bar=accounting_bar(accounting),
            chart=history(list(reversed(runs))),
            runs=runs[:8],
            running=next((run for run in runs if run["state"] == "running"), None),
            failed=runs[0] if runs and runs[0]["state"] == "failed" else None,
            schedule=self._bridge.schedule(),
            remarks=sorted(self._bridge.quality(source=source).items(), key=lambda item: -item[1]),
            files=self._files()[:_FILES_SHOWN] if self._bridge.config.files.several and source is None else [],
        )

    def coverage(self, common: Mapping[str, Any]) -> ResponseReturnValue:
        given = query(request, {"source": str, "q": str, "page": int})
        within(given, "page", 1, 1_000_000)
        source, wanted, number = source_of(given, self._bridge.source_names()), given.get("q", ""), given.get("page", 1)
        cells: dict[str, dict[str, Mapping[str, Any]]] = {}
        totals: dict[str, int] = {}
        models: dict[str, list[int]] = {}
        for row in self._bridge.coverage(source=source):
            cells.setdefault(row["model"], {})[row["hardware"]] = row
            totals[row["hardware"]] = totals.get(row["hardware"], 0) + row["total"]
            sums = models.setdefault(row["model"], [0, 0])
            sums[0] += row["total"]
            sums[1] += row["delivered"]
        hardware = sorted(totals, key=lambda name: (-totals[name], name))
        found = sorted((name for name in models if wanted.lower() in name.lower()), key=lambda name: (-models[name][0], name))
        first = (number - 1) * _MODELS_SHOWN
        return page(
            "coverage.html",
            **common,
            **self._sources(source),
            q=wanted,
            number=number,
            first=first,
            found=len(found),
            models=[(name, *models[name]) for name in found[first : first + _MODELS_SHOWN]],
            hardware=hardware[:_HARDWARE_SHOWN],
            more_hardware=len(hardware) - _HARDWARE_SHOWN,
            cells=cells,
            level=cell_level,
            more=first + _MODELS_SHOWN < len(found),
        )

    def refusals(self, common: Mapping[str, Any]) -> ResponseReturnValue:
        source = source_of(query(request, {"source": str, "said": str}), self._bridge.source_names())
        groups: dict[tuple[str, str], dict[str, Any]] = {}
        for row in self._bridge.refusals(source=source):
            group = groups.setdefault((row["state"], row["code"]), {"state": row["state"], "code": row["code"], "count": 0, "rows": []})
            group["count"] += row["count"]
            group["rows"].append(row)
        ordered = sorted(groups.values(), key=lambda group: (-group["count"], group["state"], group["code"]))
        accounting = self._bridge.accounting(source=source)
        return page(
            "refusals.html",
            **common,
            **self._sources(source),
            groups=ordered[:_REASONS_SHOWN],
            more=len(ordered) - _REASONS_SHOWN,
            sentences=_SENTENCES_SHOWN,
            skipped=sorted(accounting["skipped_by_reason"].items(), key=lambda item: -item[1]),
        )

    def results(self, common: Mapping[str, Any]) -> ResponseReturnValue:
        asked = {name: text for name, text in request.args.items() if text}  # a form sends what is left empty, too
        given = query(request, {"source": str, "state": str, "model": str, "hardware": str, "cursor": str}, asked)
        source = source_of(given, self._bridge.source_names())
        chosen: dict[str, Any] = {name: given[name] for name in ("state", "model", "hardware") if name in given}
        state = given.pop("state", None)
        if state is not None and state not in _NAMED:
            raise InvalidArgument(f"There is no state {state!r}.", guidance=f"Choose one of: {', '.join(_NAMED)}.")
        if "cursor" in given:
            common["check_cursor"](given["cursor"])
        found = self._bridge.results(state=_NAMED.get(state or ""), source=source, limit=_RESULTS_SHOWN, **given)
        again = chosen.copy()
        if source is not None:
            again["source"] = source
        return page(
            "results.html",
            **common,
            **self._sources(source),
            rows=[result_as_json(row) for row in found.rows],
            chosen=chosen,
            states=list(_NAMED),
            begun="cursor" in given,
            again=urlencode(again),
            following=urlencode({**again, "cursor": found.next_cursor}) if found.next_cursor else None,
        )

    def result(self, common: Mapping[str, Any]) -> ResponseReturnValue:
        given = query(request, {"source": str, "id": str, "said": str})
        source = source_of(given, self._bridge.source_names())
        if "id" not in given:  # nobody said which: here they all are
            return redirect(common["at"]("results", source=source), 303)
        story = self._bridge.story(given["id"], source=source)
        says = {said["content_hash"]: said for said in story.sink_says}
        return page("result.html", 200 if story.found else 404, **common, **self._sources(source or story.source), story=story, says=says)

    def runs(self, common: Mapping[str, Any]) -> ResponseReturnValue:
        given = query(request, {"source": str, "before": int})
        source = source_of(given, self._bridge.source_names())
        found = self._bridge.runs(limit=_RUNS_SHOWN + 1, before=given.get("before"), source=source)
        return page(
            "runs.html",
            **common,
            **self._sources(source),
            runs=found[:_RUNS_SHOWN],
            before=given.get("before"),
            following=found[_RUNS_SHOWN - 1]["run_id"] if len(found) > _RUNS_SHOWN else None,
        )

    def run(self, common: Mapping[str, Any], run_id: int) -> ResponseReturnValue:
        query(request, {"said": str})
        found = self._bridge.run(min(run_id, 2**62))
        if found is None:
            return page(
                "error.html", 404, **common, **self._sources(None), title="No such run", detail=f"There is no run {run_id}.", guidance=""
            )
        return page("run.html", **common, **self._sources(found.get("source")), run=found)

    def predictions(self, common: Mapping[str, Any]) -> ResponseReturnValue:
        source = source_of(query(request, {"source": str}), self._bridge.source_names())
        found = self._bridge.accuracy(source=source)
        losses = found.pop("losses")
        silence = accuracy.silence(found["overall"])
        shown = [group for group in found["overall"] if group["results"] or not silence]
        own = {name: [group for group in groups if group["figure"] == "throughput"] for name, groups in found.items()}

        def most(name: str, dimension: str) -> list[tuple[str, Mapping[str, Any]]]:
            return [(group[dimension], group) for group in sorted(own[name], key=lambda group: -group["results"])[:_MODELS_SHOWN]]

        days = [(group["day"], group["median_error"]) for group in own["by_day"] if group["median_error"] is not None]
        return page(
            "predictions.html",
            **common,
            **self._sources(source),
            silence=silence,
            overall=sorted(shown, key=lambda group: (FIGURES.index(group["figure"]), PREDICTORS.index(group["predictor"]))),
            names=_PREDICTORS,
            losses=losses,
            unanswered=sum(group["unanswered"] for group in found["overall"]),
            seen=[(_seen(group), group) for group in reversed(own["by_seen"])],
            trend=trend(days[-_RUNS_DRAWN:], "half within"),
            hardware=most("by_hardware", "hardware"),
            family=most("by_family", "family"),
            next=self._next(source),
        )

    def regressions(self, common: Mapping[str, Any]) -> ResponseReturnValue:
        return self._regressions.listed(common, self._sources(request.args.get("source") or None))

    def regression(self, common: Mapping[str, Any], regression_id: int) -> ResponseReturnValue:
        return self._regressions.one(common, self._sources(None), regression_id)

    def suggestions(self, common: Mapping[str, Any]) -> ResponseReturnValue:
        return self._suggestions.listed(common, self._sources(request.args.get("source") or None))

    # -- tables for other programs ------------------------------------------------------------------------------------------------------

    def table(self, name: str, kind: str) -> Response:
        """A table of a page, whole."""
        given = query(request, {"source": str, "id": str})
        source = source_of(given, self._bridge.source_names())
        rows: Sequence[Mapping[str, Any]]
        if name == "accounting":
            accounting = self._bridge.accounting(source=source)
            rows = [{"state": state, "results": accounting[state]} for state in ACCOUNTED]
        elif name == "coverage":
            rows = self._bridge.coverage(source=source)
        elif name == "refusals":
            rows = self._bridge.refusals(source=source)
        elif name == "remarks":
            rows = [{"remark": remark, "results": count} for remark, count in self._bridge.quality(source=source).items()]
        elif name == "files":
            rows = self._files()
        else:
            story = self._bridge.story(given.get("id", ""), source=source)
            rows = story.contents if name == "contents" else story.as_dict()["fields"]
        return export.table(_TABLES[name], rows, name=name, kind=kind)

    # -- inside -------------------------------------------------------------------------------------------------------------------------

    def _sources(self, source: str | None) -> dict[str, Any]:
        """What the head of every page says of the benchmark files."""
        files = self._bridge.config.files
        return {"source": source, "several": files.several, "label": source or (files.label if files.several else files.name)}

    def _next(self, source: str | None) -> Mapping[str, Any]:
        """The head of the plan, or in `note` why there is none: the page is about more than that."""
        try:
            return self._bridge.plan(limit=_PLAN_SHOWN, source=source, within_s=_PLAN_WITHIN_S, recent_s=_PLAN_KEPT_S)
        except BridgeError as error:
            return {"plan": [], "note": error.message, "basis": "", "candidates": 0}

    def _files(self) -> list[dict[str, Any]]:
        told = self._bridge.files()
        return [{**said, **{name: said["accounting"][name] for name in ("total", *ACCOUNTED)}} for said in told]


def _seen(group: Mapping[str, Any]) -> str:
    """What of model and hardware the predictor had measurements of."""
    names = [name for name in ("model", "hardware") if group[f"{name}_seen"]]
    return " and ".join(names) if names else "neither model nor hardware"


def table_names() -> Sequence[str]:
    return tuple(_TABLES)


def common_of(visitor: Visitor | None, token: str, *, reads_are_open: bool, said: str | None) -> dict[str, Any]:
    """What every page shows beside its own."""
    return {
        "visitor": visitor,
        "token": token,
        "reads_are_open": reads_are_open,
        "said": said,
        "at": lambda endpoint, /, **values: url_for(
            f"benchbridge.pages.{endpoint}", **{key: value for key, value in values.items() if value}
        ),
        "data": lambda endpoint, /, **values: url_for(f"benchbridge.{endpoint}", **{key: value for key, value in values.items() if value}),
        "endpoint": (request.endpoint or "").rpartition(".")[2],
    }
