"""The file against the ledger, in three ways: all of it by content (`compare`), by ids alone where it only grew (`look`), and each row once where nothing
is known of it yet (`first_pass`)."""

from benchbridge_plugin.comparison.first import Census, begin_census, first_pass
from benchbridge_plugin.comparison.grown import Found, look
from benchbridge_plugin.comparison.rows import identity
from benchbridge_plugin.comparison.whole import Plan, compare

__all__ = ["Census", "Found", "Plan", "begin_census", "compare", "first_pass", "identity", "look"]
