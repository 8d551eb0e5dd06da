"""What the doctor says of the ledger, and of the clock as far as the ledger's past tells it. The ledger is looked at and not touched."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from benchbridge_plugin.as_json import iso
from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.finding import Finding

_CLOCKS_APART_S = 60.0


def look_at_ledger(config: BridgeConfig) -> list[Finding]:
    """The ledger, and the clock as far as the ledger's past tells it. Looks without `Ledger`, which would make the tables, or bring them up to date."""
    from sqlalchemy import create_engine, func, inspect, select
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from benchbridge_plugin.ledger.schema import ledger_meta, runs
    from benchbridge_plugin.ledger.store import NO_DRIVER

    latest = None
    try:
        url = make_url(config.resolved_ledger_url)
        place = url.render_as_string(hide_password=True)
        if url.get_backend_name() == "sqlite":
            path = Path(url.database or "")
            place = str(path)
            if finding := _not_there(path):
                return [finding, _clock(None)]
            url = make_url(f"sqlite:///file:{quote(str(path.absolute()))}?mode=ro&uri=true")
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                tables = inspect(connection).get_table_names()
                known = ledger_meta.name in tables
                found = connection.execute(select(ledger_meta.c.value).where(ledger_meta.c.name == "version")).scalar() if known else None
                if known and runs.name in tables:
                    latest = connection.execute(select(func.max(runs.c.started_at))).scalar()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        message = f"the ledger cannot be read: {cause}"
        guidance = NO_DRIVER if isinstance(error, ImportError) else "Check ledger_url (--ledger); docs/operations.md says more."
        return [Finding("error", "ledger", message, guidance, 2), _clock(None)]
    return [_of_version(place, int(found or 0), tables), _clock(latest)]


def _of_version(place: str, version: int, tables: Sequence[str]) -> Finding:
    from benchbridge_plugin.ledger.upgrades import VERSION

    if version > VERSION:
        message = f"{place} has version {version}, and this benchbridge knows versions up to {VERSION}"
        return Finding("error", "ledger", message, "Upgrade benchbridge: pip install -U benchbridge.", 2)
    if version == 0 and tables:
        message = f"{place} holds something else ({', '.join(tables[:3])}); the next sync would add its tables to it"
        return Finding("warning", "ledger", message, "Check ledger_url (--ledger).")
    if 0 < version < VERSION:
        return Finding("ok", "ledger", f"{place} has version {version}; the next sync brings it up to date")
    return Finding("ok", "ledger", f"{place} is readable" if version else f"{place} is empty; the first sync makes its tables")


def _clock(latest_run: float | None) -> Finding:
    """The look-back and the times of runs go by this machine's clock. A run of the past that began in the future shows that it was set back."""
    now = time.time()
    if latest_run is not None and latest_run > now + _CLOCKS_APART_S:
        message = f"it is {iso(now)} here, and the ledger has a run of {iso(latest_run)}: this clock, or that of another host, is wrong"
        return Finding("warning", "clock", message, "Set the clock (NTP). Nothing is lost: waiting times and leases move along.")
    return Finding("ok", "clock", f"it is {iso(now)}")


def _not_there(path: Path) -> Finding | None:
    """What there is to say without opening the file: it is missing, or may not be written."""
    if not path.parent.is_dir():
        return Finding("error", "ledger", f"there is no directory {path.parent}", "Create it, or set ledger_url (--ledger).", 2)
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        return Finding(
            "error", "ledger", f"{path} may not be written by this user", "Allow it, or set ledger_url (--ledger) to another place.", 2
        )
    return None if path.exists() else Finding("ok", "ledger", f"{path} is not there yet; the first sync makes it")
