"""From servers that run to an engine that takes orders: Valkey is fit, the ledger migrated, the demo sale made, and
every front end says that it is ready.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from flashsale.embedded import PostgresServer
from flashsale.engine.faults import SupervisorFault
from flashsale.settings import Settings, reachable

log = structlog.get_logger("flashsale.supervisor")

READY_POLL_S = 0.02
READY_ANSWERS_A_FRONT = 4  # /readyz in a row, each on a new connection: the kernel spreads them over the front ends
NOT_READY_REPORT_S = 10.0
HTTP_TIMEOUT_S = 2.0


async def check_given_valkey(settings: Settings) -> None:
    """One that would evict holds, or forget answered orders, is refused before anything starts on it."""
    from redis.exceptions import RedisError

    from flashsale.reservation import server

    client = server.connect(settings.redis_url or "")
    try:
        lacking = await server.shortcomings(client, settings.durability, settings.backlog_max_bytes)
    except (RedisError, OSError) as fault:
        raise SupervisorFault(f"the Valkey of FLASHSALE_REDIS_URL can't be reached: {fault}") from fault
    finally:
        await client.aclose()
    if lacking:
        raise SupervisorFault("the Valkey of FLASHSALE_REDIS_URL is refused: " + "; ".join(lacking))


async def migrated(database_url: str, postgres: PostgresServer | None) -> None:
    """The ledger has every table; postgres: the embedded server, whose tables are the engine's role's, and which is
    started again if it dies meanwhile. Raises SupervisorFault.
    """
    from flashsale.ledger import schema
    from flashsale.ledger.migrate import migrate
    from flashsale.ledger.pool import CONNECTION_LOST, reason_of

    while True:
        try:
            if postgres is not None:
                await postgres.let_application_in()
            found, line = await schema.told(database_url)
            if found is schema.State.NEWER:
                raise SupervisorFault(line)
            return await migrate(database_url)
        except SupervisorFault:
            raise
        except Exception as fault:
            if not (postgres is not None and isinstance(fault, CONNECTION_LOST)):
                whose = "the ledger" if postgres is not None else "the PostgreSQL of FLASHSALE_DATABASE_URL"
                raise SupervisorFault(f"{whose} can't be migrated: {reason_of(fault)}") from fault
        await asyncio.sleep(READY_POLL_S)


async def become_ready(settings: Settings, redis_url: str, database_url: str, *, demo: bool) -> None:
    """The sales are there (with `demo` the demo sale too) and every front end takes orders. No limit: a rebuild may
    run for minutes."""
    await _prepare_sales(redis_url, database_url, demo)
    wanted = READY_ANSWERS_A_FRONT * settings.processes if settings.processes > 1 else 1
    in_a_row = 0
    report_at = time.monotonic() + NOT_READY_REPORT_S
    while in_a_row < wanted:
        status, body = await _get(settings.host, settings.port, "/readyz")
        in_a_row = in_a_row + 1 if status == 200 else 0
        if status != 200:
            if time.monotonic() > report_at:
                log.warning("up.not_ready", status=status, answer=body[:1000])
                report_at += NOT_READY_REPORT_S
            await asyncio.sleep(READY_POLL_S)


async def _prepare_sales(redis_url: str, database_url: str, demo: bool) -> None:
    """The present world, and the demo sale where it is wanted, as soon as the worker has verified Valkey against the
    ledger; a part that is away for a moment comes back."""
    from redis.exceptions import RedisError

    from flashsale.ledger.pool import connect
    from flashsale.merchandising import CommandRefused, bring_up_to_date, ensure_demo_sale
    from flashsale.reservation import server

    client = server.connect(redis_url)
    report_at = time.monotonic() + NOT_READY_REPORT_S
    try:
        while True:
            try:
                ledger = await connect(database_url)
                try:
                    await bring_up_to_date(client, ledger)
                    if demo and await ensure_demo_sale(client, ledger):
                        log.info("demo_sale.made")
                    return
                finally:
                    await ledger.close()
            except (CommandRefused, RedisError, OSError) as fault:
                if time.monotonic() > report_at:
                    log.warning("up.not_ready", reason=str(fault))
                    report_at += NOT_READY_REPORT_S
            await asyncio.sleep(READY_POLL_S)
    finally:
        await client.aclose()


async def _get(host: str, port: int, path: str) -> tuple[int, str]:
    """(status, body) of a GET on a connection of its own; status 0 where nobody answers."""
    try:
        async with asyncio.timeout(HTTP_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(reachable(host).strip("[]"), port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {reachable(host)}\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read(64 * 1024)
            finally:
                writer.close()
    except (OSError, TimeoutError) as fault:
        return 0, str(fault) or type(fault).__name__
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 2 and words[1].isdigit() else 0
    return status, body.decode("utf-8", "replace")
