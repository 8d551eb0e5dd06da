"""The routes under /api/bridge."""

from __future__ import annotations

from benchbridge_plugin.web.blueprint import create_blueprint, create_broken_blueprint

__all__ = ["create_blueprint", "create_broken_blueprint"]
