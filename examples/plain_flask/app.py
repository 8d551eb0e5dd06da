"""The bridge in a Flask application that knows no plugins. What is not said here comes from BENCHBRIDGE_... in the environment."""

import logging

from flask import Flask

from benchbridge_plugin import init_app


def create_app() -> Flask:
    """The application with the routes under /api/bridge. Opens nothing and starts nothing: gunicorn.conf.py does, in each worker."""
    app = Flask(__name__)
    init_app(app, {"enabled": True, "auto_sync_enabled": True})

    @app.get("/")
    def home() -> dict[str, str]:
        return {"bridge": "/api/bridge/status"}

    return app


logging.basicConfig(level=logging.INFO)  # or INFO lines of the bridge are seen nowhere: gunicorn shows its own
app = create_app()
