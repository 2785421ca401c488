"""Logging: one JSON object a line, on stderr, so that stdout stays what a command answers.

structlog for our own lines; the standard library's (aiohttp, asyncio, alembic) go the same way. What is only said ends
nothing and holds nothing up: where a line can't be written (a full disk, a reader that is gone or hangs), it is lost,
and the next one that can be says how many were.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from typing import Any

import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

CHUNK_BYTES = 4096  # PIPE_BUF: a pipe that takes bytes at all takes so many without making the writer wait
READER_SLOW_MS = 20  # the longest that a line waits for a reader who is merely slow; of one that hangs, only the first


class Said:
    """A text stream on a file descriptor whose write() neither fails nor waits for a reader that hangs."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lost = 0  # lines since the last that was written
        self._torn = False  # the last one was written in part
        self._writable = select.poll()
        self._writable.register(descriptor, select.POLLOUT)

    def write(self, text: str) -> int:
        """Writes the text, whole lines of it, or loses them."""
        note = json.dumps({"event": "log.lines_lost", "lines": self._lost}) + "\n" if self._lost else ""
        if self._put(("\n" if self._torn else "") + note + text):
            self._lost, self._torn = 0, False
        else:
            self._lost += text.count("\n") or 1
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def _put(self, text: str) -> bool:
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while left:
                if not self._writable.poll(0 if self._lost else READER_SLOW_MS):
                    return False
                written = os.write(self._descriptor, left[:CHUNK_BYTES])
                left = left[written:]
                self._torn = True
        except OSError:
            return False
        return True


def say(line: str) -> None:
    """One line of a long-running command on standard output, for as long as somebody takes it."""
    if sys.stdout is not None:
        Said(sys.stdout.fileno()).write(line + "\n")


def set_up(level: str, part: str) -> None:
    """Log from `level` on; every line names the part of the engine that wrote it. Call once, at the process's start."""
    structlog.contextvars.bind_contextvars(part=part)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    # Started without a stderr, its number is the next file's that is opened: never write there.
    said: Any = Said(sys.stderr.fileno() if sys.stderr else os.open(os.devnull, os.O_WRONLY))
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(ensure_ascii=False)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=said),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(said)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    # Libraries speak from `warning` on: their `info` is a line an event, which nobody acts on.
    logging.basicConfig(handlers=[handler], level=max(_LEVELS[level], logging.WARNING), force=True)
