"""The report as one HTML file that needs nothing beside it: for an archive, an attachment, a colleague without access."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchbridge_plugin.accuracy import silence
from benchbridge_plugin.charts import accounting_bar, cell_level, history
from benchbridge_plugin.regressions.words import configuration_of, side_of

_MODELS_SHOWN = 200
_HARDWARE_SHOWN = 16
_REASONS_SHOWN = 200


def page_of(report: Mapping[str, Any], failed: str) -> str:
    """The report (see report.build) as an HTML document; `failed` says why the newest run did, if so.

    Everything in it is escaped; it has no script and asks for nothing.
    """
    from benchbridge_plugin.templating import environment  # only who wants this pays for it

    models, hardware = list(report["model_coverage"].items()), list(report["hardware_coverage"])
    return (
        environment("benchbridge_plugin")
        .get_template("report.html")
        .render(
            report=report,
            accounting=report["accounting"],
            bar=accounting_bar(report["accounting"]),
            chart=history(list(reversed(report["sync_history"]))),
            cells={(row["model"], row["hardware"]): row for row in report["coverage"]},
            models=models[:_MODELS_SHOWN],
            more_models=len(models) - _MODELS_SHOWN,
            hardware=hardware[:_HARDWARE_SHOWN],
            refusals=report["refusals"][:_REASONS_SHOWN],
            more_refusals=len(report["refusals"]) - _REASONS_SHOWN,
            level=cell_level,
            failed=failed,
            configuration=configuration_of,
            silence_of=silence,
            side=side_of,
        )
    )
