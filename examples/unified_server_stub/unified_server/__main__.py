"""``python -m unified_server``: serve a configuration, run the demo, or make the sample database.

Exit codes: 0 stopped as asked, 1 the port is in use (or the demo's run failed), 2 usage or configuration.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_server.app import create_app
from unified_server.config import load_config
from unified_server.demo import run_demo
from unified_server.errors import ConfigError
from unified_server.sample import load_sample
from unified_server.serving import serve

LOG_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["load-sample"]:
        return _load_sample(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m unified_server",
        description="The Unified API Server.",
        epilog="python -m unified_server load-sample --output FILE makes a benchmark database of the sample.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE", help="serve this JSON configuration")
    what.add_argument("--demo", action="store_true", help="serve the sample with the bridge; needs no configuration")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s; 0: any free one")
    parser.add_argument("--directory", default="demo", type=Path, help="of the demo; default: %(default)s")
    parser.add_argument("--exit-after-sync", action="store_true", help="of the demo: stop after the first run")
    options = parser.parse_args(words)
    try:
        if options.demo:
            logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT)
            return run_demo(options.directory, options.host, options.port, exit_after_sync=options.exit_after_sync)
        config = load_config(options.config)
        _configure_logging(config)
        app = create_app(config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Cannot use {error.filename or options.directory}: {error.strerror or error}.", file=sys.stderr)
        return 2
    return serve(app, options.host, options.port)


def _load_sample(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m unified_server load-sample")
    parser.add_argument("--output", required=True, metavar="FILE", help="the DuckDB file to make")
    output = parser.parse_args(words).output
    try:
        print(f"{load_sample(output)} benchmark results written to {output}")
    except OSError as error:
        reason = "it exists already" if isinstance(error, FileExistsError) else error.strerror or error
        print(f"Cannot write {output}: {reason}.", file=sys.stderr)
        return 2
    return 0


def _configure_logging(config: Mapping[str, Any]) -> None:
    """The section "logging": level, file (null: stderr), format. Raises ConfigError."""
    section = config.get("logging", {})
    try:
        logging.basicConfig(
            level=section.get("level", "INFO"),
            filename=section.get("file"),
            format=section.get("format", LOG_FORMAT),
        )
    except (AttributeError, ValueError, TypeError, OSError) as error:
        raise ConfigError(f"config: the section logging cannot be used: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
