"""The version, alone, so that setup.cfg and the lazily importing package read it from one place."""

__version__ = "0.1.0"
