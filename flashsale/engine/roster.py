"""Every part of one engine, made from its settings, and what run.json says of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, TextIO
from urllib.parse import urlsplit

from flashsale import metrics_files, runfile, secret, tether, unprivileged
from flashsale.embedded import PostgresServer, ValkeyServer
from flashsale.engine.parts import OwnPart, Part, living
from flashsale.engine.payments_sandbox import PaymentsSandbox
from flashsale.settings import ENV_PREFIX, Settings, misspelt

# What the servers are asked for beside the front ends: by the worker's duties, by commands, by whoever looks. As many
# as the servers' own defaults, so that the front ends, however many, come on top.
SESSIONS_BESIDE_FRONTS = 100
CLIENTS_BESIDE_FRONTS = 10_000
LOOPBACK = ("localhost", "127.0.0.1", "::1")
FRONT_LINKS = 8  # of one front beside its pages' (FLASHSALE_VALKEY_CONNECTIONS): batches, webhooks, catalogue, checks


class Roster:
    """The parts that one `flashsale up` runs; a server that is not ours has no part."""

    def __init__(self, settings: Settings, parts_log: TextIO | None) -> None:
        """parts_log: where our own parts log to; None: our stderr."""
        self.settings = settings
        self._owner: tuple[int, int] | None = None
        data_dir = settings.data_dir
        self.valkey = (
            ValkeyServer(
                data_dir / "valkey",
                _embedded_durability(settings),
                settings.maxmemory_mb,
                clients_max=CLIENTS_BESIDE_FRONTS + settings.processes * (settings.valkey_connections + FRONT_LINKS),
            )
            if settings.redis_url is None
            else None
        )
        self.postgres = (
            PostgresServer(
                data_dir / "postgres", SESSIONS_BESIDE_FRONTS + settings.processes * settings.ledger_connections
            )
            if settings.database_url is None
            else None
        )
        env = self._env = _environment(settings)
        self.sandbox = PaymentsSandbox(settings, env, parts_log) if settings.payments_url is None else None
        # The fronts answer for all on the management port.
        self._worker_env = {**env, f"{ENV_PREFIX}MANAGEMENT_PORT": ""}
        self.worker = OwnPart("worker", ["worker", "--rebuild"], self._worker_env, parts_log)
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
        return self.settings.database_url or (self.postgres.application_url if self.postgres else "")

    def own(self) -> Iterator[OwnPart]:
        """Those of our own, in the order in which they start."""
        if self.sandbox is not None:
            yield self.sandbox
        yield self.worker
        yield from self.fronts

    def run_as(self, owner: tuple[int, int]) -> None:
        """Valkey and our own parts run as (uid, gid). Before any of them is started."""
        self._owner = owner
        for part in (*self.own(), self.valkey):
            if part is not None:
                part.owner = owner
        if self.postgres is not None:
            self.postgres.client = owner

    def prepare(self) -> None:
        """What our own parts learn by their environment: where they count, who takes payments; and what they can't read
        in DATA_DIR where they run as an account of their own. Before their start."""
        learned: dict[str, str] = {}
        place = metrics_files.emptied(self.settings.data_dir, self._owner)
        if place is not None:
            learned[metrics_files.VARIABLE] = str(place)
        if self.sandbox is not None:
            learned |= self.sandbox.prepare()
        if self._owner is not None:
            if self.sandbox is not None:
                unprivileged.hand_over(self.sandbox.directory, *self._owner)
            learned |= {
                f"{ENV_PREFIX}SECRET": secret.find(self.settings),
                f"{ENV_PREFIX}REDIS_URL": self.redis_url,
                f"{ENV_PREFIX}DATABASE_URL": self.database_url,
                "HOME": "/nonexistent",  # root's own is shut
            }
        for env in (self._env, self._worker_env):
            env |= learned

    def stand_ins(self) -> Iterator[str]:
        """What does not reach the outside world, a line each: said at every start, lest a real sale runs on it."""
        if self.sandbox is not None:
            yield "payments go to the sandbox: no money moves"
        for name, url in (("identities", self.settings.identities_url), ("carriers", self.settings.carriers_url)):
            if url is not None and (urlsplit(url).hostname or "") in LOOPBACK:
                yield f"{name} are asked on this machine ({url}), as their sandbox is: nothing real happens there"

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
