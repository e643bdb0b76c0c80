"""Belong: a self-hosted membership index on Redis or Valkey."""

__version__ = "0.1.0"
