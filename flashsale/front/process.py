"""One front process: its start, its clockwork, and its drain on SIGTERM.

Everything a front holds is made here and handed down; nothing of it survives the process. Each process binds the port
itself (SO_REUSEPORT), so the kernel spreads the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine

import structlog
import uvloop

from flashsale.front.admission import Admission
from flashsale.front.app import make_app, make_management_app
from flashsale.front.auth import Verifier
from flashsale.front.catalogues import Catalogues
from flashsale.front.channel_route import ChannelRoute
from flashsale.front.context import FrontContext
from flashsale.front.hotpath import RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES, HotPath, Route
from flashsale.front.identities import IdentityTokens
from flashsale.front.intake import Intake
from flashsale.front.lane_room import LaneRoom
from flashsale.front.lending import Lending
from flashsale.front.management import open_port
from flashsale.front.openapi import OPENAPI
from flashsale.front.order_route import OrderRoute
from flashsale.front.replay import Replays
from flashsale.front.verdicts import Answers
from flashsale.front.webhook_route import WebhookRoute
from flashsale.ledger.pool import Ledger
from flashsale.partners.identities.http import open_account as open_identities
from flashsale.partners.payments.account import open_account
from flashsale.partners.payments.signature import WebhookVerifier
from flashsale.reservation import server
from flashsale.reservation.batcher import Batcher, Limits
from flashsale.reservation.events import EventLog
from flashsale.settings import SANDBOX_PAGES, Settings

OWN_CONNECTIONS = 2
SWEEP_S = 0.2
ACCEPT_BACKLOG = 4096  # connections that the kernel keeps for us while the crowd arrives
READY_POLL_S = 0.01
READY_FIRST_S = 1.0  # a starting front takes no connection before it takes orders, but tells its reasons after this
LAST_WORD_S = 0.3  # at a drain, an idle connection may still bring a request that was on its way

log = structlog.get_logger(__name__)


def serve(settings: Settings, show_life: Callable[[], Coroutine[None, None, None]]) -> None:
    """Runs one front process until SIGTERM or SIGINT, then drains it. Blocks.

    show_life: runs beside everything else, so that whoever started the process sees that its loop turns.
    """
    uvloop.run(_serve(settings, show_life))


async def _serve(settings: Settings, show_life: Callable[[], Coroutine[None, None, None]]) -> None:
    secret, redis_url, database_url = settings.secret, settings.redis_url, settings.database_url
    if secret is None or redis_url is None or database_url is None:
        raise ValueError("a front needs secret, redis_url and database_url")
    loop = asyncio.get_running_loop()
    showing = loop.create_task(show_life())
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    valkey = server.connect(redis_url, connections=settings.valkey_connections)
    # Orders do not wait behind pages: what the batcher asks has connections, and a catalogue, of its own.
    own_valkey = server.connect(redis_url, connections=OWN_CONNECTIONS)
    own_catalogues = Catalogues(own_valkey)
    verifier = Verifier(secret.get_secret_value().encode())
    ledger = Ledger(database_url, connections_max=settings.ledger_connections, timeout_s=settings.ledger_timeout_s)
    reasons: list[str] = []
    context = FrontContext(
        settings=settings,
        valkey=valkey,
        ledger=ledger,
        catalogues=Catalogues(valkey),
        verifier=verifier,
        ready_reasons=lambda: reasons + batcher.reasons(),
        payments=(provider := open_account(settings)),
        identities=(identities := open_identities(settings)),
        identity_tokens=(tokens := IdentityTokens(secret.get_secret_value().encode())),
    )
    lending = Lending(make_app(context))
    await lending.start()
    answers = Answers()
    intake = Intake(verifier, tokens)
    orders = OrderRoute(settings, intake, answers, Replays(answers, own_catalogues), LaneRoom(answers, own_valkey))
    webhooks = WebhookRoute(_webhook_verifier(settings), answers)
    routes: list[Route] = [orders, ChannelRoute(intake, orders), webhooks]
    admission = Admission(verifier, OPENAPI, (SANDBOX_PAGES,) if settings.payments_sandbox_url is not None else ())
    hot = HotPath(settings, answers, lending, admission, routes, orders.take_plain)

    def check() -> Awaitable[list[str]]:
        return server.shortcomings(own_valkey, settings.durability, settings.backlog_max_bytes)

    batcher = orders.batcher = Batcher(
        redis_url,
        orders,
        Limits(
            batch_max=settings.batch_max,
            batches_in_flight=settings.batches_in_flight,
            queue_max=settings.queue_max,
            linger_ms=settings.linger_ms,
            answer_within_ms=settings.answer_within_ms,
            backlog_max_bytes=settings.backlog_max_bytes,
        ),
        load=own_catalogues.refresh,
        check=check,
    )
    tasks = [loop.create_task(batcher.run()), loop.create_task(_keep_time(hot))]
    if settings.payments_webhook_secret is not None:
        webhooks.log = EventLog(
            redis_url,
            webhooks,
            backlog_max_bytes=settings.payments_backlog_max_bytes,
            answer_within_ms=settings.answer_within_ms,
            check=check,
        )
        tasks.append(loop.create_task(webhooks.log.run()))
    managing = None
    if settings.management_port is not None:
        managing = await open_port(make_management_app(context), settings)
    await _ready_or_late(batcher)
    listener = listen(settings)
    accepting = await loop.create_server(hot.connection, sock=listener, backlog=ACCEPT_BACKLOG)
    # What exists now lives as long as the process: the collector need not walk it again for every few thousand orders.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    log.info("front is listening", port=settings.port)

    stopped = loop.create_task(stop.wait())
    await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():  # neither ever ends of itself: without it no order would be decided, or none time out
        log.error("a front's clockwork has ended: it stops, to be started again")
    reasons.append("this front is stopping")
    lending.end_streams()
    await _drain(hot, accepting, settings.drain_timeout_s)
    await asyncio.gather(*(server.ended(task) for task in tasks))
    await lending.stop()
    if managing is not None:
        await managing.cleanup()
    await ledger.close()
    await valkey.aclose()
    await own_valkey.aclose()
    if provider is not None:
        await provider.aclose()
    if identities is not None:
        await identities.aclose()
    showing.cancel()
    if not stop.is_set():
        raise RuntimeError("a front's clockwork has ended")
    log.info("front has drained")


def _webhook_verifier(settings: Settings) -> WebhookVerifier | None:
    """None where payments are not set up."""
    secret = settings.payments_webhook_secret
    return None if secret is None else WebhookVerifier(secret.get_secret_value())


def listen(settings: Settings) -> socket.socket:
    """The process's own socket on the shared port. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Accepted sockets inherit it: it bounds what one read returns, and so what one client can make the process keep.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    # And this, how many answers are made for a client that reads none.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.bind((settings.host, settings.port))
    listener.setblocking(False)
    return listener


async def _ready_or_late(batcher: Batcher) -> None:
    """Beside fronts that take orders, one that refuses them would get its share of the crowd: it joins when ready."""
    for _ in range(round(READY_FIRST_S / READY_POLL_S)):
        if not batcher.reasons():
            return
        await asyncio.sleep(READY_POLL_S)


async def _keep_time(hot: HotPath) -> None:
    """The hot path reads no clock: this sets its clocks, times its connections out and keeps the Date header right."""
    loop = asyncio.get_running_loop()
    while True:
        hot.answers.tick()
        hot.sweep(loop.time(), time.time())
        await asyncio.sleep(SWEEP_S)


async def _drain(hot: HotPath, accepting: asyncio.Server, timeout_s: float) -> None:
    """Answers all that was taken, tells each client with its next answer to go elsewhere, then closes what is idle."""
    await asyncio.sleep(0)  # connections that the kernel has completed are accepted before the socket closes
    accepting.close()
    hot.begin_drain(asyncio.get_running_loop().time() + LAST_WORD_S)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(hot.drained.wait(), timeout_s)
    for connection in list(hot.connections):
        connection.abort()
