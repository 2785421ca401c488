"""DATA_DIR/run.json: which processes make up the running engine, and where its servers listen.

Written whole, by rename, at each change of a part, by `flashsale up` alone; every other command finds the engine by it.
Private (0600): PostgreSQL's address carries its password, and the sandbox's keys stand in it. Beside each pid stands
the process's start in clock ticks of this boot, so that a later engine never takes a stranger's process for an old
part.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypedDict

import msgspec
from pydantic import SecretStr

from flashsale import secret
from flashsale.settings import Settings

NAME = "run.json"


class Front(TypedDict):
    """One front-end process."""

    pid: int
    started: int
    port: int


class Worker(TypedDict):
    """One worker process."""

    pid: int
    started: int
    name: str


class Server(TypedDict):
    """Valkey or PostgreSQL; pid and started are None for a server that is not ours."""

    pid: int | None
    started: int | None
    address: str


class PaymentsSandbox(TypedDict):
    """The payments sandbox, and how to speak with it."""

    pid: int | None
    started: int | None
    address: str
    api_key: str
    webhook_secret: str


class Supervisor(TypedDict):
    """The `flashsale up` that wrote the file."""

    pid: int
    started: int


class RunFile(TypedDict):
    """The whole file."""

    boot: str
    supervisor: Supervisor
    front: list[Front]
    worker: list[Worker]
    valkey: Server
    postgres: Server
    payments_sandbox: PaymentsSandbox | None  # None: the provider is not ours


class NoEngine(Exception):
    """No running engine can be found; one line that says what to do."""


def read(data_dir: Path) -> RunFile | None:
    """What the last engine on this directory wrote; None if there is nothing, or nothing that is a run.json whole.

    Raises PermissionError where it is another user's.
    """
    try:
        return msgspec.json.decode((data_dir / NAME).read_bytes(), type=RunFile)
    except PermissionError:
        raise
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def write(data_dir: Path, content: RunFile) -> None:
    """Replace the file at once: a reader sees the old one or the new one."""
    new = data_dir / f"{NAME}.new"
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)
    new.rename(data_dir / NAME)


def addresses(settings: Settings) -> tuple[str, str]:
    """(redis_url, database_url) of the engine: the environment's first, else those in run.json.

    Raises NoEngine where neither says, PermissionError where run.json is another user's.
    """
    if settings.redis_url is not None and settings.database_url is not None:
        return settings.redis_url, settings.database_url
    running = read(settings.data_dir)
    if running is None:
        raise NoEngine(
            f"no engine has been started on {settings.data_dir}: start `flashsale up`, set FLASHSALE_DATA_DIR, "
            "or set FLASHSALE_REDIS_URL and FLASHSALE_DATABASE_URL"
        )
    return (
        settings.redis_url or running["valkey"]["address"],
        settings.database_url or running["postgres"]["address"],
    )


def with_payments(settings: Settings) -> Settings:
    """The same settings with what they lack of the payment provider taken from the running engine's sandbox. One that
    was given by its address is not mixed with the sandbox's keys."""
    running = read(settings.data_dir) if settings.payments_url is None else None
    sandbox = running["payments_sandbox"] if running is not None else None
    if sandbox is None:
        return settings
    return settings.model_copy(
        update={
            "payments_url": sandbox["address"],
            "payments_api_key": SecretStr(sandbox["api_key"]),
            "payments_webhook_secret": SecretStr(sandbox["webhook_secret"]),
        }
    )


def completed(settings: Settings) -> Settings:
    """The same settings with secret, addresses and payment provider filled in. Raises NoSecret, NoEngine."""
    settings = with_payments(settings)
    found = secret.find(settings)
    redis_url, database_url = addresses(settings)
    return settings.model_copy(
        update={"secret": SecretStr(found), "redis_url": redis_url, "database_url": database_url}
    )
