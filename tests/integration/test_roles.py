"""What each role may do, as a table over every route: all tokens have the same name, so that only the role tells."""

from __future__ import annotations

import pytest

from flashsale.front.app import ROUTES
from flashsale.front.auth import ROLES
from tests.integration.house import House

NAME = "tmall-world"  # of a shopper, an agent, a channel and a merchant alike
OPEN = {
    *(f"/v1/sales{rest}" for rest in ("", "/{sale}", "/{sale}/offers", "/{sale}/stock")),
    *("/v1/markets", "/v1/lanes", "/v1/quotes"),
    "/v1/carriers/{carrier}/events",  # signed by the carrier, whoever brings it
    *("/livez", "/readyz", "/metrics", "/problems", "/problems/{name}", "/openapi.json", "/docs"),
}
READ, OWN = {"shopper", "admin", "agent", "channel"}, {"shopper", "admin", "channel"}
ADMIN, SHOPPER, CHANNEL = {"admin"}, {"shopper"}, {"channel", "admin"}
MAY: dict[tuple[str, str], set[str]] = {
    ("GET", "/v1/orders/{id}"): READ,
    ("GET", "/v1/orders/{id}/events"): READ,
    ("GET", "/v1/orders/{id}/payment"): READ,
    ("GET", "/v1/orders/{id}/tracking"): READ,
    ("POST", "/v1/orders/{id}/payment"): READ,
    ("POST", "/v1/orders/{id}/extension"): READ,
    ("GET", "/v1/orders/{id}/refunds"): READ,
    ("GET", "/v1/orders/{id}/returns"): READ,
    ("POST", "/v1/orders/{id}/cancellation"): OWN,
    ("POST", "/v1/orders/{id}/returns"): OWN,
    ("GET", "/v1/shoppers/me/orders"): {"shopper", "admin"},
    ("GET", "/v1/agents/me/orders"): {"agent"},
}
"""Of the other routes the address says whose they are."""


def may(method: str, path: str) -> set[str]:
    if (method, path) in MAY:
        return MAY[method, path]
    if path.startswith("/v1/channels/"):
        return CHANNEL
    if path.startswith("/v1/merchants/"):
        return {"merchant", "admin"}
    if path.startswith("/v1/shoppers/me/"):
        return SHOPPER
    return ADMIN


GUARDED = [(method, path) for method, path, _ in ROUTES if path not in OPEN and not path.startswith("/v1/returns/")]


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_a_route_is_for_its_roles_and_for_no_other(house: House, method: str, path: str) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    order = await house.order(NAME, ("A", 1))
    await house.settle()
    await house.ledger.execute("UPDATE orders SET agent = $1, channel = $1", NAME)
    stream = path.endswith("/events")
    own = NAME if path.startswith("/v1/merchants/") else order.id
    address = path.replace("{id}", own).replace("{channel}", NAME)
    address = address.replace("{import}", "im-1").replace("{number}", "1").replace("{sku}", "A")
    let_in = set()
    for role in ROLES:
        headers = {**house.token(NAME, role), "Content-Type": "application/json"}
        # A body that is refused shows who was let in as far as the body, and changes nothing for the next role.
        body = None if method == "GET" else b'{"no such field": 1}'
        async with house.session.request(method, address, headers=headers, data=body) as answer:
            if stream and answer.status == 200:
                let_in.add(role)
                continue
            read = await answer.read()
            named = answer.headers["Content-Type"].startswith("application/problem")
            if not (answer.status == 403 or (answer.status == 404 and named and b"of yours" in read)):
                let_in.add(role)
    async with house.session.request(method, address, data=None) as answer:
        assert answer.status == 401
    allowed = may(method, path)
    if "{import}" in path or path.endswith(
        ("{sku}/stock", "grants/{id}", "reverse-orders/{id}", "/decision", "/receipt")
    ):
        assert let_in <= allowed  # the order's id is no grant's and no return's: nobody finds one
    elif method == "POST" and (method, path) in MAY:
        # The body is read before the order is looked for; who is not the order's is refused below, with a right body.
        assert allowed <= let_in
    else:
        assert let_in == allowed


STEPS = ("payment", "extension", "cancellation", "shipment", "delivery", "refunds", "returns")


@pytest.mark.parametrize("role", ["merchant", "agent", "channel", "shopper"])
@pytest.mark.parametrize("step", STEPS)
async def test_nobody_takes_a_step_with_anothers_order(house: House, step: str, role: str) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    order = await house.order("ada", ("A", 1))
    await house.settle()
    bodies = {
        "payment": {"method": "card"},
        "delivery": {"delivered": True},
        "refunds": {"amount": {"amount": 1, "currency": "SGD"}, "reason": "x"},
        "returns": {"lines": [{"sku": "A", "quantity": 1}], "reason": "x"},
    }
    # The role's own name for all but the shopper, whose name would be right.
    sub = "bea" if role == "shopper" else "ada"
    headers = house.token(sub, role)
    async with house.session.post(
        f"/v1/orders/{order.id}/{step}", json=bodies.get(step, {}), headers=headers
    ) as answer:
        assert answer.status in (403, 404), await answer.read()
    async with house.session.get(f"/v1/orders/{order.id}", headers=headers) as answer:
        assert answer.status == 404
    assert await house.ledger.fetchval("SELECT status FROM orders") == "reserved"


async def test_an_agent_reads_and_the_recipient_decides(house: House) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    order = await house.order("ada", ("A", 1))
    await house.settle()
    await house.ledger.execute("UPDATE orders SET agent = 'li-wei'")
    agent, ada = house.token("li-wei", "agent"), house.token("ada")
    assert (await house.get(f"/v1/orders/{order.id}", **agent))["id"] == order.id
    (listed,) = (await house.get("/v1/agents/me/orders", **agent))["orders"]
    assert listed["id"] == order.id
    assert (await house.get("/v1/agents/me/orders", **house.token("other", "agent"))) == {"orders": []}
    (own,) = (await house.get("/v1/shoppers/me/orders", **ada))["orders"]
    assert own["id"] == order.id
    assert (await house.post(f"/v1/orders/{order.id}/cancellation", {}, 403, **agent))["name"] == "forbidden"
    assert (await house.post(f"/v1/orders/{order.id}/cancellation", {}, **ada))["status"] == "cancelled"
