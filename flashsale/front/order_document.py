"""An order, its payment, refunds and returns as the answers show them. Nothing here asks a server."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from flashsale.front.answers import money, rfc3339
from flashsale.ledger.dossier import Dossier
from flashsale.ledger.history import HistoryRow
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.payments import PaymentRow
from flashsale.ledger.refunds import RefundRow
from flashsale.ledger.returns import ReturnRow
from flashsale.sale.catalogue import Sale
from flashsale.sale.lifecycle import Payment, Status
from flashsale.sale.next_step import Do, Situation, next_step
from flashsale.sale.payment import IntentState, RefundState
from flashsale.sale.payment_methods import offered

FIRST_EVENT = "order.reserved"
"""The first entry of every history: the order's own row."""

_COMING = frozenset({Status.PAID, Status.SHIPPED})
_PARCEL_MOVED = frozenset({"order.shipped", "order.delivered", "order.undeliverable"})
_OPEN_RETURNS = ("accepted", "requested")  # the one that asks something of the shopper first
_UNITS = ("cancelled", "shipped", "returned", "refunded")


def shown(order: OrderRow, sale: Sale) -> dict[str, Any]:
    """The order as a list shows it: the body of its 201, what became of its lines, and when it was made."""
    return {
        "id": order.id,
        "sale": sale.id,
        "status": order.status,
        "market": order.market,
        "channel": order.channel,
        "lines": [_line(order, place, sale) for place in range(len(order.skus))],
        "total": money(order.total, order.currency),
        **_crossing(order),
        "reserved_until": rfc3339(deadline_ms(order)),
        "created_at": rfc3339(order.journal_ms),
    }


def whole(found: Dossier, sale: Sale, now_ms: int | None = None) -> dict[str, Any]:
    """All that a shopper reads of an order, the next step to take included."""
    order = found.order
    body = {
        **shown(order, sale),
        "payment": payment_summary(order, found.payment),
        "next": _next(found, sale, int(time.time() * 1000) if now_ms is None else now_ms),
        "history": history(order, found.history, sale),
    }
    if found.waybill is not None:
        body["tracking"] = found.waybill
    if found.refunds:
        body["refunds"] = [shown_refund(refund) for refund in found.refunds]
    if found.returns:
        body["returns"] = [shown_return(each, sale) for each in found.returns]
    return body


def _crossing(order: OrderRow) -> dict[str, Any]:
    """How it gets there, by when, and what its border costs, as the order froze it: nothing where it crosses none.

    `promised_by` stays what was promised with the order; a promise made anew at the payment stands beside it.
    """
    body: dict[str, Any] = {
        "lane": order.lane,
        "shipping": money(order.shipping or 0, order.currency),
        "duty": money(sum(order.duties or ()), order.currency),
        "tax": money(sum(order.taxes or ()), order.currency),
        "due_on_delivery": {
            "duty": money(order.due_duty or 0, order.currency),
            "tax": money(order.due_tax or 0, order.currency),
        },
        "terms": "DAP" if order.ddp is False else "DDP",
        "estimated": bool(order.estimated),
        "promised_by": order.promised_by and order.promised_by.isoformat(),
    }
    if order.restated_by is not None:
        body["restated_by"] = order.restated_by.isoformat()
    if order.agent is not None:
        body["agent"] = order.agent
    return body


def deadline_ms(order: OrderRow) -> int:
    """When the hold runs out."""
    return order.journal_ms + order.hold_ms


def _line(order: OrderRow, place: int, sale: Sale) -> dict[str, Any]:
    line: dict[str, Any] = {
        "sku": sale.offers[order.skus[place]].sku,
        "quantity": order.quantities[place],
        "price": money(order.prices[place], order.currency),
    }
    if order.duties is not None and order.taxes is not None:
        line["duty"] = money(order.duties[place], order.currency)
        line["tax"] = money(order.taxes[place], order.currency)
    for name in _UNITS:
        units: Sequence[int] | None = getattr(order, name)
        if units is not None and units[place]:
            line[name] = units[place]
    return line


def payment_summary(order: OrderRow, payment: PaymentRow | None) -> dict[str, Any]:
    """The order's money in short."""
    body: dict[str, Any] = {"status": order.payment}
    if payment is None:
        return body | {"amount": money(order.total, order.currency)}
    body |= {"method": payment.method, "amount": money(payment.amount, payment.currency)}
    for name in ("authorised", "captured", "refunded"):
        body[name] = money(getattr(payment, name), payment.currency)
    if payment.dispute is not None:
        body["dispute"] = payment.dispute
    return body


def shown_payment(order: OrderRow, payment: PaymentRow) -> dict[str, Any]:
    """The payment, and where it is made."""
    body = {
        "id": order.id,
        **payment_summary(order, payment),
        "provider_id": payment.provider_id or payment.session_id,
        "pay_url": payment.pay_url,
        "methods": list(offered(order.market)),
    }
    if payment.failure is not None:
        body["failure"] = payment.failure
    return body


def shown_refund(refund: RefundRow) -> dict[str, Any]:
    """Money on its way back, or back."""
    body = {
        "id": refund.id,
        "status": refund.status,
        "amount": money(refund.amount, refund.currency),
        "cause": refund.cause,
        "created_at": rfc3339(refund.created_ms),
    }
    if refund.settled_ms is not None:
        body["settled_at"] = rfc3339(refund.settled_ms)
    if refund.failure is not None:
        body["failure"] = refund.failure
    return body


def shown_return(row: ReturnRow, sale: Sale) -> dict[str, Any]:
    """Units on their way back."""
    lines = []
    for place, sku in enumerate(row.skus):
        line = {"sku": sale.offers[sku].sku, "quantity": row.quantities[place]}
        if row.received is not None and row.restocked is not None:
            line |= {"received": row.received[place], "restocked": row.restocked[place]}
        lines.append(line)
    return {
        "id": row.id,
        "order": row.order_id,
        "status": row.status,
        "reason": row.reason,
        "lines": lines,
        "created_at": rfc3339(row.created_ms),
        "changed_at": rfc3339(row.changed_ms),
    }


def history(order: OrderRow, changes: Sequence[HistoryRow], sale: Sale) -> list[dict[str, Any]]:
    """Every change that the order had, oldest first. The order itself is the first entry."""
    first = {"number": 1, "status": Status.RESERVED.value, "at": rfc3339(order.journal_ms), "event": FIRST_EVENT}
    return [first, *(_entry(row, sale) for row in changes)]


def _entry(row: HistoryRow, sale: Sale) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "number": row.number,
        "status": row.status,
        "at": rfc3339(row.at_ms),
        "event": row.event,
    }
    if detail := _detail(row.detail or {}, sale):
        entry["detail"] = detail
    return entry


def _detail(kept: Mapping[str, Any], sale: Sale) -> dict[str, Any]:
    """A change's detail in the contract's words: SKUs by name; what is absent, or the requester's own key, left out."""
    detail = {name: value for name, value in kept.items() if value is not None and name != "key"}
    for name in ("lines", "restocked"):
        if name in detail:
            detail[name] = [{"sku": sale.offers[sku].sku, "quantity": units} for sku, units in detail[name]]
    return detail


def _next(found: Dossier, sale: Sale, now_ms: int) -> dict[str, Any]:
    order, payment = found.order, found.payment
    overdue = now_ms >= deadline_ms(order)
    until_ms = returnable_until_ms(found, sale)
    step = next_step(
        Situation(
            status=Status(order.status),
            payment=Payment(order.payment),
            overdue=overdue,
            processing=payment is not None and payment.state == IntentState.PROCESSING,
            deciding=payment is not None and payment.late == "asked",
            disputed=payment is not None and payment.dispute in ("open", "lost"),
            refund=_unsettled(found.refunds),
            sent_back=_open_return(found.returns),
            returnable=until_ms is not None and now_ms <= until_ms and _can_be_returned(order),
            restated=order.restated_by is not None,
        )
    )
    body: dict[str, Any] = {"do": step.do.value, "why": step.why}
    if step.do is Do.PAY:
        body |= {"until": rfc3339(deadline_ms(order)), "href": f"/v1/orders/{order.id}/payment"}
    elif step.do is Do.RETURN and until_ms is not None:
        body |= {"until": rfc3339(until_ms), "href": f"/v1/orders/{order.id}/returns"}
    elif step.do is Do.WAIT:
        body["href"] = f"/v1/orders/{order.id}/events"
        by = order.restated_by or order.promised_by
        if by is not None and Status(order.status) in _COMING:
            body["by"] = by.isoformat()
    elif step.do is Do.ORDER_AGAIN:
        body["href"] = f"/v1/sales/{sale.id}/offers?market={order.market}"
    return body


def _unsettled(refunds: Sequence[RefundRow]) -> RefundState | None:
    statuses = {refund.status for refund in refunds}
    return next((state for state in (RefundState.FAILED, RefundState.PENDING) if state.value in statuses), None)


def _open_return(returns: Sequence[ReturnRow]) -> str | None:
    statuses = {each.status for each in returns}
    return next((status for status in _OPEN_RETURNS if status in statuses), None)


def returnable_until_ms(found: Dossier, sale: Sale) -> int | None:
    """Until when shipped units may go back: the sale's time after the parcel's last step. None: nothing was shipped."""
    moved = [row.at_ms for row in found.history if row.event in _PARCEL_MOVED]
    return max(moved) + sale.return_ms if moved else None


def _can_be_returned(order: OrderRow) -> bool:
    """Whether of some line more units were shipped than came back."""
    back = order.returned or [0] * len(order.skus)
    return any(shipped > returned for shipped, returned in zip(order.shipped or (), back, strict=False))
