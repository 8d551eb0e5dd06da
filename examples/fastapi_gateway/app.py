"""The bridge behind a FastAPI application. What is not said here comes from BENCHBRIDGE_... in the environment."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from a2wsgi import WSGIMiddleware
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from flask import Flask

from benchbridge_plugin import init_app
from benchbridge_plugin.plugin import start, stop

logging.basicConfig(level=logging.INFO)  # or INFO lines of the bridge are seen nowhere: uvicorn shows its own
flask = Flask(__name__)
init_app(flask, {"enabled": True, "auto_sync_enabled": True})


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """uvicorn runs it in each worker: the timer starts before the first request and stops after the last."""
    await run_in_threadpool(start, flask)
    try:
        yield
    finally:
        await run_in_threadpool(stop, flask)


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def home() -> dict[str, str]:
    """A route of the gateway's own; those above the mount come first."""
    return {"bridge": "/api/bridge/status"}


app.mount("/", WSGIMiddleware(flask))
