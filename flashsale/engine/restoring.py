"""The servers that a restore fills: the embedded ones, started for it while no engine runs, or those of the URLs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flashsale import secret
from flashsale.audit import audit
from flashsale.embedded import PostgresServer, ValkeyServer
from flashsale.engine.claim import claim
from flashsale.recovery import SET_ASIDE, archive, by_hand
from flashsale.recovery import restore as ledger
from flashsale.settings import Settings


class Target(NamedTuple):
    """Where Valkey and PostgreSQL listen."""

    redis_url: str
    database_url: str


@dataclass(slots=True)
class Restored:
    """What was done. `aside`: the schema that holds what was in the ledger before; `recovered`: what the rebuild did;
    `faults`: the audit's, a line each."""

    ok: bool
    orders: int
    aside: str | None
    recovered: dict[str, Any]
    faults: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def servers(settings: Settings) -> Iterator[Target]:
    """Both servers, the embedded ones running until the end. Raises SupervisorFault where an engine runs on the data
    directory, ServerFault where one can't be started."""
    with contextlib.ExitStack() as held:
        held.callback(lambda locks: locks.clear(), claim(settings))
        redis_url, database_url = settings.redis_url, settings.database_url
        if database_url is None:
            postgres = PostgresServer(settings.data_dir / "postgres")
            held.callback(postgres.stop)
            postgres.start()
            database_url = postgres.url
        if redis_url is None:
            durability = "memory" if settings.durability == "memory" else "fsync"
            valkey = ValkeyServer(settings.data_dir / "valkey", durability, settings.maxmemory_mb)  # type: ignore[arg-type]
            held.callback(valkey.stop)
            valkey.start()
            redis_url = valkey.url
        yield Target(redis_url, database_url)


async def restore(
    target: Target, settings: Settings, directory: Path, told: Callable[[str], None], *, force: bool
) -> Restored:
    """The backup into the ledger, its secret into DATA_DIR, Valkey by the ledger, and the audit. Raises BadArchive and
    RestoreRefused, having changed nothing."""
    told("checking the files")
    manifest = archive.read(directory)
    aside = await ledger.bring_back(target.database_url, directory, manifest, told, force=force)
    if manifest.secret and settings.secret is None:
        keep_secret(settings.data_dir, (directory / archive.SECRET).read_text())
    told("building Valkey")
    recovered = await by_hand.recover(
        target.redis_url,
        target.database_url,
        durability=settings.durability,
        backlog_max_bytes=settings.backlog_max_bytes,
        force=True,
        set_aside=settings.data_dir / SET_ASIDE,
    )
    if not recovered.ok:
        lines = [*recovered.shortcomings, *([recovered.reason] if recovered.reason else [])]
        return Restored(False, manifest.orders, aside, recovered.as_dict(), lines)
    told("audit")
    report = await audit(target.redis_url, target.database_url)
    faults = [
        f"{fault.invariant} {fault.order or fault.sku or fault.sale or ''}: {fault.detail}" for fault in report.faults
    ]
    return Restored(report.ok, manifest.orders, aside, recovered.as_dict(), faults)


def keep_secret(data_dir: Path, text: str) -> None:
    """The backup's secret in the place of the one that is there, which is kept beside it: the tokens that are out there
    are the backup's."""
    place = secret.path(data_dir)
    if place.exists():
        if place.read_text() == text:
            return
        place.rename(place.with_name(f"{place.name}.before-restore"))
    archive.private(place, text.encode())
    os.sync()
