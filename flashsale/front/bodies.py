"""The bodies of the requests that change an order, and how a page reads one: JSON or MessagePack, as for orders."""

from collections.abc import Callable
from ipaddress import ip_address
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from aiohttp import web
from msgspec import Meta, Struct

from flashsale.errors import Refused
from flashsale.front.answers import JSON, MESSAGEPACK
from flashsale.front.intake import idempotency_key
from flashsale.sale.decoding import InvalidBody, MalformedBody, Shape, name_repeated_skus
from flashsale.sale.order import LINES_MAX, Amount, Line, Name

URL_MAX = 2000  # characters that every browser and provider takes
REASON_MAX = 500

Reason = Annotated[str, Meta(max_length=REASON_MAX)]
Lines = Annotated[list[Line], Meta(min_length=1, max_length=LINES_MAX)]
_Request = TypeVar("_Request", bound=Struct)
_WEB_PORTS = range(1, 65536)


class PaymentRequest(Struct, forbid_unknown_fields=True):
    """How the shopper wants to pay, and where the browser goes afterwards."""

    method: Name
    return_url: Annotated[str, Meta(min_length=1, max_length=URL_MAX)] | None = None


class ExtensionRequest(Struct, forbid_unknown_fields=True):
    """Nothing is asked."""


class CancellationRequest(Struct, forbid_unknown_fields=True):
    """`lines` absent: the whole order."""

    lines: Lines | None = None
    reason: Reason | None = None


class ReturnRequest(Struct, forbid_unknown_fields=True):
    """Units that the shopper wants to send back."""

    lines: Lines
    reason: Annotated[str, Meta(min_length=1, max_length=REASON_MAX)]


class DecisionRequest(Struct, forbid_unknown_fields=True):
    """Whether a return is accepted."""

    accept: bool


class ReceivedLine(Line, forbid_unknown_fields=True):
    """Units that arrived; `restock`: they go on the shelf again."""

    restock: bool = False


class ReceiptRequest(Struct, forbid_unknown_fields=True):
    """What of a return arrived."""

    lines: Annotated[list[ReceivedLine], Meta(min_length=1, max_length=LINES_MAX)]


class ShipmentRequest(Struct, forbid_unknown_fields=True):
    """`lines` absent: all that is left of the order. What is not shipped is cancelled."""

    lines: Lines | None = None


class DeliveryRequest(Struct, forbid_unknown_fields=True):
    """False: the carrier could not deliver."""

    delivered: bool


class RefundRequest(Struct, forbid_unknown_fields=True):
    """Money given back out of goodwill."""

    amount: Amount
    reason: Annotated[str, Meta(min_length=1, max_length=REASON_MAX)]


def _lines(
    request: CancellationRequest | ReturnRequest | ReceiptRequest | ShipmentRequest, faults: dict[str, str]
) -> None:
    name_repeated_skus([line.sku for line in request.lines or ()], faults)


def _return_url(request: PaymentRequest, faults: dict[str, str]) -> None:
    if request.return_url is not None and (fault := fault_of_url(request.return_url)):
        faults["return_url"] = fault


def _some_money(request: RefundRequest, faults: dict[str, str]) -> None:
    if not request.amount.amount:
        faults["amount.amount"] = "more than 0 is given back"


def fault_of_url(url: str) -> str:
    """What is wrong with the address that a shopper's browser is to be sent to; "" if nothing is."""
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "an address in ASCII without spaces, control characters and backslashes is wanted"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "not an address"
    if not parts.hostname or (port is not None and port not in _WEB_PORTS):
        return "not an address"
    if parts.username is not None or parts.password is not None:
        return "names and passwords have no place in it"
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        return "https is wanted; http serves for this machine's own addresses alone"
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


PAYMENT = Shape(PaymentRequest, _return_url)
EXTENSION = Shape(ExtensionRequest)
CANCELLATION = Shape(CancellationRequest, _lines)
RETURN = Shape(ReturnRequest, _lines)
DECISION = Shape(DecisionRequest)
RECEIPT = Shape(ReceiptRequest, _lines)
SHIPMENT = Shape(ShipmentRequest, _lines)
DELIVERY = Shape(DeliveryRequest)
REFUND = Shape(RefundRequest, _some_money)


async def read_body(request: web.Request, shape: Shape[_Request]) -> _Request:
    """The request in the body; where everything in it may be left out, no body is an empty one. Raises Refused:
    unsupported-media-type, malformed, invalid-request."""
    body = await request.read()
    try:
        # Clients name a type for no body, too.
        return _decoder(request, shape)(body) if body else shape.from_json(b"{}")
    except MalformedBody as fault:
        raise Refused("malformed", f"The body can't be decoded: {fault}") from None
    except InvalidBody as fault:
        raise Refused("invalid-request", fields=fault.fields) from None


def _decoder(request: web.Request, shape: Shape[_Request]) -> Callable[[bytes], _Request]:
    if request.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
        raise Refused("unsupported-media-type", "A compressed body is not taken.")
    media_type = request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
    if media_type == JSON:
        return shape.from_json
    if media_type in MESSAGEPACK:
        return shape.from_msgpack
    raise Refused("unsupported-media-type", "The body is application/json or application/msgpack.")


def given_key(request: web.Request) -> str | None:
    """The Idempotency-Key of a step that may go without one. Raises Refused("malformed")."""
    values = request.headers.getall("Idempotency-Key", [])
    if not values:
        return None
    if len(values) > 1:
        raise Refused("malformed", "The Idempotency-Key is given more than once.")
    return idempotency_key(values[0].encode("utf-8", "surrogateescape"))
