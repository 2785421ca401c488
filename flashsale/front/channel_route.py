"""POST /v1/channels/{channel}/orders on the hot path: up to 500 orders of a sales channel, each answered on its own.

Each becomes an order like any other (same batcher, same script, same answers); its client is the `Reply`, which gathers
the answers and is itself what waits in the connection's queue.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from typing import cast

import msgpack  # type: ignore[import-untyped]
import msgspec
import orjson

from flashsale.errors import Refused
from flashsale.front.auth import bearer
from flashsale.front.connection import Connection
from flashsale.front.framing import ACCEPT, AUTHORIZATION, Head
from flashsale.front.hotpath import CHANNEL_ORDERS, WIDE_BUFFER_BYTES
from flashsale.front.intake import Intake, answers_packed, media_type
from flashsale.front.order_route import OrderRoute
from flashsale.front.verdicts import GUARDED
from flashsale.sale.channel_order import Faulty, orders_of
from flashsale.sale.decoding import InvalidBody, MalformedBody
from flashsale.sale.priced import Order

PATH = re.compile(rb"/v1/channels/([A-Za-z0-9][A-Za-z0-9._-]{0,63})/orders")

_string = msgspec.json.Encoder().encode
_PROBLEM = (
    msgpack.packb("reference"),
    msgpack.packb("status"),
    msgpack.packb("order"),
    msgpack.packb("problem"),
    msgpack.packb("results"),
)


class Reply:
    """One request's answer in the making: as soon as all of its orders have theirs, it is written."""

    __slots__ = ("_left", "_packed", "_results", "_route", "answer", "client")

    def __init__(self, route: ChannelRoute, orders: int, packed: bool) -> None:
        self.answer: bytes | None = None
        self.client: object | None = None
        self._route, self._packed, self._left = route, packed, orders
        self._results: list[bytes | str] = [b""] * orders  # JSON is text, a MessagePack one bytes

    def answered(self, order: Order, answer: bytes | str) -> None:
        """An order's answer: the body of a 201 (JSON), or a whole answer, of which the head is left out."""
        reference = order.key
        if isinstance(answer, str):
            # A reference holds no control characters and no surrogates: only these two need an escape.
            if "\\" in reference or '"' in reference:
                reference = reference.replace("\\", "\\\\").replace('"', '\\"')
            self._results[order.place] = f'{{"reference":"{reference}","status":201,"order":{answer}}}'
            self._left -= 1
            if self._left == 0:
                self._finish()
        else:
            head, _, body = answer.partition(b"\r\n\r\n")
            self.put(order.place, reference, int(head[9:12]), body, b"application/msgpack" in head)

    def put(self, place: int, reference: str | None, status: int, body: bytes, body_packed: bool = False) -> None:
        """The result in that place; `body` an order's or a problem's, JSON or MessagePack."""
        key = "order" if status == 201 else "problem"
        if not self._packed:
            body = orjson.dumps(msgpack.unpackb(body)) if body_packed else body
            name = _string(reference).decode()
            self._put(place, f'{{"reference":{name},"status":{status},"{key}":{body.decode()}}}')
            return
        body = body if body_packed else msgpack.packb(orjson.loads(body))
        name_reference, name_status, name_order, name_problem, _ = _PROBLEM
        named = name_order if status == 201 else name_problem
        self._put(
            place,
            b"\x83" + name_reference + msgpack.packb(reference) + name_status + msgpack.packb(status) + named + body,
        )

    def _put(self, place: int, result: bytes | str) -> None:
        self._results[place] = result
        self._left -= 1
        if self._left == 0:
            self._finish()

    def _finish(self) -> None:
        self._route.done()
        client = cast("Connection | None", self.client)
        if client is None:
            return
        if self._packed:
            count = len(self._results)
            body = (
                b"\x81"
                + _PROBLEM[4]
                + b"\xdc"
                + count.to_bytes(2, "big")
                + b"".join(cast("list[bytes]", self._results))
            )
        else:
            body = f'{{"results":[{",".join(cast("list[str]", self._results))}]}}'.encode()
        self.client = None
        client.answered(self, self._route.head(self._packed, len(body)) + body)


class ChannelRoute:
    """Takes the orders of channels. Relies on the order route for prices, the batcher and the count of refusals."""

    path = CHANNEL_ORDERS

    def __init__(self, intake: Intake, orders: OrderRoute) -> None:
        self._intake, self._orders = intake, orders
        self._replies = 0
        self.tick(0.0)

    @property
    def pending(self) -> int:
        """Requests taken and not yet answered."""
        return self._replies

    def take(self, connection: Connection, head: Head, body: bytes) -> None:
        """One request: refused as a whole, or each of its orders answered."""
        try:
            self._take(connection, head, body)
        except Refused as refused:
            self._orders.count(refused.name)
            connection.refuse(refused)

    def _take(self, connection: Connection, head: Head, body: bytes) -> None:
        packed = media_type(head)
        claims = self._intake.claims(bearer(head.fields.get(AUTHORIZATION, b"")))
        match = PATH.fullmatch(head.target.partition(b"?")[0])
        if match is None:
            raise Refused("not-found")
        channel = match[1].decode("ascii")
        if claims.role != "admin" and (claims.role != "channel" or claims.sub != channel):
            raise Refused("forbidden", f"Orders of {channel} are sent with its own token, or an admin's.")
        if not self._intake.knows_channel(channel):
            raise Refused("not-found", f"There is no channel {channel}.")
        if self._orders.batcher.closed is not None:
            raise Refused("overloaded", self._orders.batcher.closed)
        try:
            asked = orders_of(body, packed, channel)
        except MalformedBody as fault:
            raise Refused("malformed", f"The body can't be decoded: {fault}") from None
        except InvalidBody as fault:
            raise Refused("invalid-request", fields=fault.fields) from None
        accept = head.fields.get(ACCEPT)
        if accept is not None and accept != b"*/*":
            packed = answers_packed(accept, packed)
        connection.widen(WIDE_BUFFER_BYTES)
        reply = Reply(self, len(asked), packed)
        self._replies += 1
        connection.place(reply)
        orders = []
        for place, each in enumerate(asked):
            if isinstance(each, Faulty):
                self._orders.count("invalid-order")
                refused = Refused("invalid-order", fields=each.fault.fields)
                reply.put(place, each.reference, refused.problem.status, refused.body())
                continue
            try:
                order = self._intake.channel_order(each, channel, packed)
            except Refused as refused:
                self._orders.count(refused.name)
                reply.put(place, each.reference, refused.problem.status, refused.body())
            else:
                order.place = place
                orders.append(order)
        self._orders.place_all(orders, reply)

    def done(self) -> None:
        """A request has its answer."""
        self._replies -= 1

    def head(self, packed: bool, length: int) -> bytes:
        """The head of a 200 with a body of that length."""
        return b"%b%d\r\n\r\n" % (self._heads[packed], length)

    def tick(self, now_s: float) -> None:
        date = formatdate(now_s, usegmt=True)
        self._heads = [
            f"HTTP/1.1 200 OK\r\nDate: {date}\r\n{GUARDED}Content-Type: application/{kind}\r\nContent-Length: ".encode()
            for kind in ("json", "msgpack")
        ]
