"""The application for a WSGI server: ``unified_server.wsgi:app``, configured by the file that UNIFIED_SERVER_CONFIG
names.

A WSGI server must also call ``unified_server.startup(app)`` in each worker; ``gunicorn_conf.py`` beside this package
does.
"""

from __future__ import annotations

import os

from unified_server.app import create_app
from unified_server.config import load_config
from unified_server.errors import ConfigError

if "UNIFIED_SERVER_CONFIG" not in os.environ:
    raise ConfigError("UNIFIED_SERVER_CONFIG must name the configuration file.")

app = create_app(load_config(os.environ["UNIFIED_SERVER_CONFIG"]))
