"""Every part of one engine, made from its settings, and what run.json says of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, TextIO

from flashsale import metrics_files, runfile, tether
from flashsale.embedded import PostgresServer, ValkeyServer
from flashsale.engine.parts import OwnPart, Part, living
from flashsale.engine.payments_sandbox import PaymentsSandbox
from flashsale.settings import ENV_PREFIX, Settings, misspelt


class Roster:
    """The parts that one `flashsale up` runs; a server that is not ours has no part."""

    def __init__(self, settings: Settings, parts_log: TextIO | None) -> None:
        """parts_log: where our own parts log to; None: our stderr."""
        self.settings = settings
        data_dir = settings.data_dir
        self.valkey = (
            ValkeyServer(data_dir / "valkey", _embedded_durability(settings), settings.maxmemory_mb)
            if settings.redis_url is None
            else None
        )
        self.postgres = PostgresServer(data_dir / "postgres") if settings.database_url is None else None
        env = self._env = _environment(settings)
        self.sandbox = PaymentsSandbox(settings, env, parts_log) if settings.payments_url is None else None
        self.worker = OwnPart("worker", ["worker", "--rebuild"], env, parts_log)
        self.fronts = [
            OwnPart(f"front {number}", ["serve"], env, parts_log) for number in range(1, settings.processes + 1)
        ]

    @property
    def redis_url(self) -> str:
        """Where Valkey listens."""
        return self.settings.redis_url or (self.valkey.url if self.valkey else "")

    @property
    def database_url(self) -> str:
        """Where PostgreSQL listens; carries its password."""
        return self.settings.database_url or (self.postgres.url if self.postgres else "")

    def own(self) -> Iterator[OwnPart]:
        """Those of our own, in the order in which they start."""
        if self.sandbox is not None:
            yield self.sandbox
        yield self.worker
        yield from self.fronts

    def prepare(self) -> None:
        """What our own parts learn by their environment: where they count, who takes payments. Before their start."""
        place = metrics_files.emptied(self.settings.data_dir)
        if place is not None:
            self._env[metrics_files.VARIABLE] = str(place)
        if self.sandbox is not None:
            self._env |= self.sandbox.prepare()

    def record(self) -> runfile.RunFile:
        """What runs now, for run.json."""
        return {
            "boot": tether.boot_id(),
            "supervisor": {"pid": os.getpid(), "started": tether.start_ticks(os.getpid()) or 0},
            "front": [
                {"pid": pid, "started": started, "port": self.settings.port}
                for part in self.fronts
                for pid, started in living(part)
            ],
            "worker": [
                {"pid": pid, "started": started, "name": self.worker.name} for pid, started in living(self.worker)
            ],
            "valkey": _server_record(self.valkey, self.redis_url),
            "postgres": _server_record(self.postgres, self.database_url),
            "payments_sandbox": self.sandbox.record() if self.sandbox is not None else None,
        }


def _environment(settings: Settings) -> dict[str, str]:
    """What our own parts read their settings from: ours, with what the command line changed."""
    changed = {
        "port": settings.port,
        "host": settings.host,
        "data_dir": settings.data_dir,
        "processes": 1,
        "durability": settings.durability,
    }
    strange = misspelt(os.environ)  # told once, by us
    return {
        **{name: value for name, value in os.environ.items() if name not in strange},
        **{f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in changed.items()},
    }


def _embedded_durability(settings: Settings) -> Literal["memory", "fsync"]:
    return "memory" if settings.durability == "memory" else "fsync"


def _server_record(server: Part | None, address: str) -> runfile.Server:
    pid, started = next(iter(living(server)), (None, None)) if server is not None else (None, None)
    return {"pid": pid, "started": started, "address": address}
