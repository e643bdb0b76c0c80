"""What people would use instead of Belong, as running servers that hold the same world.

Three small programs, each in a folder of its own that imports nothing of Belong: FastAPI with
redis-py, Django REST framework with PostgreSQL, Fastify with ioredis. README.md says what they do
and what they do not. This package sets them up, starts them and loads the world into them.
"""

from __future__ import annotations

from bench.peers.installing import versions
from bench.peers.running import NAMES, missing, peers

__all__ = ["NAMES", "missing", "peers", "versions"]
