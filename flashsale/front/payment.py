"""POST and GET /v1/orders/{id}/payment: how an order is paid, and how far that has come.

A payment begins in three phases, each of which may be the last before a crash: (1) the ledger notes that the order is
about to be paid, (2) the provider makes its object, under keys that follow from the order, (3) the ledger notes what
the provider answered. The same request again goes through the same phases and finds what the earlier one left.
"""

import time
from collections.abc import Awaitable, Callable
from hashlib import blake2s

import structlog
from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import answer, who
from flashsale.front.auth import Claims
from flashsale.front.bodies import PAYMENT, PaymentRequest, read_body
from flashsale.front.context import FrontContext, context_of
from flashsale.front.order_document import deadline_ms, shown_payment
from flashsale.front.steps import created, now_ms, order_of, transaction
from flashsale.ledger import life, payments
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.payments import PaymentRow
from flashsale.partners.payments.provider import (
    Opened,
    Payable,
    PaymentProvider,
    ProviderAway,
    ProviderRefused,
)
from flashsale.reservation import commands
from flashsale.sale.payment import RANK, IntentState
from flashsale.sale.payment_methods import METHODS, offered

CUT_OFF_S = 1.0  # a provider that is away is silent for longer, or refuses connections: the second call says the same

log = structlog.get_logger(__name__)


async def pay(request: web.Request) -> web.Response:
    """POST /v1/orders/{id}/payment"""
    claims = who(request)
    asked = await read_body(request, PAYMENT)
    context = context_of(request)
    _check_way_back(context, claims, asked)
    order, _ = await order_of(request, claims)
    if claims.role == "agent" and not await commands.is_granted(context.valkey, order.shopper, claims.sub):
        raise Refused("not-granted", id=order.id)  # it was, when the order was placed
    methods = offered(order.market)
    if asked.method not in methods:
        raise Refused("method-unavailable", id=order.id, methods=list(methods))
    order, payment, known = await _begin(context, order.id, asked)
    if not known:
        payment = await _open(context, order, payment, asked)
    location = f"/v1/orders/{order.id}/payment"
    return created(request, shown_payment(order, payment), location)


def _check_way_back(context: FrontContext, claims: Claims, asked: PaymentRequest) -> None:
    """Who pays is led back to a shop of ours: never to where whoever began the payment likes. Raises Refused."""
    if asked.return_url is None:
        return
    if claims.role == "agent":
        raise Refused("invalid-request", fields={"return_url": "it is the recipient who pays, and who comes back"})
    if not context.settings.may_return_to(asked.return_url):
        why = "no place of this shop: FLASHSALE_RETURN_ORIGINS lists where else a payment may lead back to"
        raise Refused("invalid-request", fields={"return_url": why})


async def payment(request: web.Request) -> web.Response:
    """GET /v1/orders/{id}/payment"""
    claims = who(request)
    order, _ = await order_of(request, claims)
    async with transaction(context_of(request)) as connection:
        found = await payments.find(connection, order.id)
    if found is None:
        raise Refused("not-found", "No payment was begun; POST here begins it.", id=order.id)
    return answer(request, shown_payment(order, found))


async def _begin(context: FrontContext, order_id: str, asked: PaymentRequest) -> tuple[OrderRow, PaymentRow, bool]:
    """Phase 1. Also answers whether the provider has been asked the same before: then nothing is left to do."""
    silent_ms = round(context.settings.payments_silent_s * 1000)
    async with transaction(context) as connection:
        before = await payments.find(connection, order_id)
        order, payment = await life.begin_payment(
            connection, order_id, asked.method, asked.return_url, now_ms(), silent_ms
        )
    known = (
        before is not None
        and payment.pay_url is not None
        and (before.method, before.return_url) == (payment.method, payment.return_url)
        and (not _is_wallet(payment.method) or payment.state != IntentState.FAILED)  # a declined wallet is asked anew
    )
    return order, payment, known


async def _open(context: FrontContext, order: OrderRow, payment: PaymentRow, asked: PaymentRequest) -> PaymentRow:
    """Phases 2 and 3."""
    provider = context.payments
    if provider is None:
        raise Refused("provider-away", "Payments are not set up.", id=order.id)
    try:
        payable = Payable.of_order(
            order.id, order.market, payment.amount, payment.currency, payment.return_url, deadline_ms(order)
        )
        opened = await _ask(lambda: provider.open(payable, payment.created_ms))
        try:
            pay_url = await _pay_url(provider, opened, payment)
        except ProviderRefused:
            await _refuse_if_over(context, provider, order, payment, opened)
            raise
        if not pay_url:  # the session is over: there is no page to pay at
            await _refuse_if_over(context, provider, order, payment, opened)
    except ProviderAway as away:
        log.warning("the payment provider is away", order=order.id, reason=str(away))
        raise Refused("provider-away", id=order.id) from None
    except ProviderRefused as refused:
        log.warning("the payment provider refuses a payment", order=order.id, method=asked.method, code=refused.code)
        detail = f"The payment provider does not take this payment: {refused.code}."
        raise Refused("method-unavailable", detail, id=order.id, methods=list(offered(order.market))) from None
    async with transaction(context) as connection:
        now = await payments.find(connection, order.id)
        if now is not None and now.pay_url is not None and now.method != payment.method:
            return now  # another request has chosen another method meanwhile: that one stands
        await payments.opened(connection, order.id, payment.created_ms, opened.session_id, opened.provider_id, pay_url)
        found = await payments.find(connection, order.id)
    return found or payment


async def _ask(call: Callable[[], Awaitable[Opened]]) -> Opened:
    """A call that was cut off at once is made a second time: a kept connection that the provider had just closed says
    nothing of the provider, and no shopper need hear of it."""
    began = time.monotonic()
    try:
        return await call()
    except ProviderAway:
        if time.monotonic() - began > CUT_OFF_S:
            raise
    return await call()


async def _refuse_if_over(
    context: FrontContext, provider: PaymentProvider, order: OrderRow, payment: PaymentRow, opened: Opened
) -> None:
    """Looks how an intent is that is not to be paid, and notes it: its event may be late or lost. Raises Refused:
    already-paid, not-payable."""
    fact = await provider.look(order.id, opened.session_id, opened.provider_id)
    if RANK[fact.state] < RANK[IntentState.AUTHORISED]:
        return
    async with transaction(context) as connection:
        await payments.opened(connection, order.id, payment.created_ms, *opened)
        await life.apply_facts(connection, [fact], now_ms())
    if fact.state is IntentState.CLOSED:
        raise Refused("not-payable", "The provider takes no payment for it any more.", id=order.id)
    raise Refused("already-paid", id=order.id)


async def _pay_url(provider: PaymentProvider, opened: Opened, payment: PaymentRow) -> str:
    """Where the shopper goes: into the wallet, or to the provider's page."""
    if not _is_wallet(payment.method) or payment.return_url is None:
        return opened.pay_url
    # Another attempt is another key: after a decline, or with another way back.
    attempt = blake2s(f"{payment.attempt} {payment.return_url}".encode(), digest_size=8).hexdigest()
    key = f"wallet-{payment.order_id}-{payment.method}-{attempt}"
    return await provider.wallet(opened, payment.method, payment.return_url, key)


def _is_wallet(method: str) -> bool:
    return METHODS[method].capture == "automatic"
