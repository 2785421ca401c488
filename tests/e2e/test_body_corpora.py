"""Orders made of what others collected to break decoders: JSON, MessagePack, naughty strings in every field, tokens.

Each is answered once, with the verdict that the corpora's README names, and never with a 500; what is taken is read
back equal, from the answer, from the page and from the ledger.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgpack
import pytest

from flashsale import runfile
from flashsale.front.auth import mint
from tests import corpora
from tests.conftest import Engine
from tests.wire import PATIENCE_S, Answer, ask, ask_many, get, post_order

SALE = """
[sale]
id = "corpora"
name = "What others collected"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2096-01-01T00:00:00Z
hold_seconds = 900
[[offers]]
sku = "A"
brand = "Haier"
title = { en = "Fridge" }
stock = 1000000000
quota = 0
weight_g = 1000
prices = { SG = "8.99" }
"""
ORDER: dict[str, Any] = {"sale": "corpora", "lines": [{"sku": "A", "quantity": 1}], "market": "SG"}
MSGPACK = "application/msgpack"
REFUSED = range(400, 500)
_keys = (f"key-{number}" for number in itertools.count())


class Shop(NamedTuple):
    """Where to buy, and with what: the engine's port, its tokens' key, a shopper's token, the ledger's address."""

    port: int
    secret: bytes
    token: str
    ledger_url: str

    def minted(self, subject: str) -> str:
        return next(mint(self.secret, subject, "shopper", 3600, int(time.time())))


@pytest.fixture(scope="module")
def shop(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The session's engine with a sale of our own; afterwards it is as well as before."""
    file: Path = tmp_path_factory.mktemp("corpora") / "sale.toml"
    file.write_text(SALE)
    engine.command("sale", "create", str(file))
    run = runfile.read(engine.data_dir)
    assert run is not None
    secret = (engine.data_dir / "secret").read_bytes()
    yield Shop(engine.port, secret, engine.token("shopper", "corpora"), run["postgres"]["address"])
    assert engine.is_ready()
    logged = engine.errors.read_text()
    assert "Traceback" not in logged, logged[logged.index("Traceback") :][:4000]


def json_order(**fields: Any) -> bytes:
    return json.dumps(ORDER | fields).encode()


async def place(shop: Shop, bodies: list[bytes], media_type: str = "application/json") -> list[Answer]:
    """The answers to these bodies, each under a key of its own. None of them is a server's fault."""
    orders = [post_order(body, shop.token, next(_keys), media_type) for body in bodies]
    answers = await ask_many(shop.port, orders)
    assert not [answer for answer in answers if answer.status >= 500]
    return answers


# --- JSON ---


def json_cases() -> list[tuple[str, bytes]]:
    """Name and bytes of every document; the name's first letter is its verdict."""
    cases = []
    for case in (corpora.load("json/jsontestsuite.json") or {"tests": []})["tests"]:
        if "repeat" in case:
            repeat = case["repeat"]
            cases.append((case["name"], (repeat["text"] * repeat["times"] + repeat.get("then", "")).encode()))
        else:
            cases.append((case["name"], base64.b64decode(case["raw_b64"])))
    return cases


async def test_a_json_body_is_malformed_exactly_where_the_suite_says_so(shop: Shop) -> None:
    cases = json_cases()
    answers = await place(shop, [body for _, body in cases])
    again = await place(shop, [body for _, body in cases])
    wrong = []
    for (name, _), answer, second in zip(cases, answers, again, strict=True):
        wanted = {"y": (422,), "n": (400,)}.get(name[0], (400, 422))  # none of them is an order
        if answer.status not in wanted or (second.status, second.problem) != (answer.status, answer.problem):
            wrong.append(f"{name}: {answer.status}, then {second.status}: {answer.body[:200]!r}")
    assert not wrong, "\n".join(wrong)
    print(Counter((name[0], answer.status) for (name, _), answer in zip(cases, answers, strict=True)))


@pytest.mark.parametrize("field", ["quantity", "lane", "ship_to", "unknown"])
async def test_a_json_value_inside_an_order_is_malformed_where_it_is_alone(shop: Shop, field: str) -> None:
    # A document that ends its place (`1]`, `1,`, a comma) is another document there: only those that can't are tried.
    cases = [case for case in json_cases() if case[0][0] in "yi" and not case[1].startswith((b"\xef\xbb\xbf", b"\xff"))]
    template = json_order(**({"lines": [{"sku": "A", "quantity": 7777}]} if field == "quantity" else {field: 7777}))
    alone = await place(shop, [body for _, body in cases])
    inside = await place(shop, [template.replace(b"7777", body) for _, body in cases])
    wrong = [
        f"{name}: alone {one.status}, inside {other.status} {other.body[:200]!r}"
        for (name, _), one, other in zip(cases, alone, inside, strict=True)
        if (one.status == 400) != (other.status == 400)
    ]
    assert not wrong, "\n".join(wrong)


# --- MessagePack ---


class Encoded(NamedTuple):
    kind: str
    value: Any
    encoding: bytes

    @property
    def has_json(self) -> bool:
        return self.kind not in ("binary", "timestamp", "ext")

    @property
    def in_json(self) -> Any:
        """The value as JSON writes it: what is encoded as a float has a fraction, and is no quantity."""
        return float(self.value) if self.encoding[:1] in (b"\xca", b"\xcb") else self.value


def msgpack_cases() -> list[Encoded]:
    groups = (corpora.load("msgpack/msgpack-test-suite.json") or {"groups": {}})["groups"]
    cases = []
    for case in (case for group in groups.values() for case in group):
        encodings = [bytes.fromhex(text.replace("-", "")) for text in case["msgpack"]]
        if "bignum" in case:
            kind, value = "number", int(case["bignum"])
        else:
            kind, value = next((kind, value) for kind, value in case.items() if kind != "msgpack")
        cases += [Encoded(kind, value, encoding) for encoding in encodings]
    return cases


def packed_with(field: str, encoding: bytes) -> bytes:
    """A MessagePack order with a field's value encoded as given."""
    marker = "\0 here \0"
    if field in ("sku", "quantity"):
        document = ORDER | {"lines": [{"sku": "A", "quantity": 1, field: marker}]}
    elif field.startswith("ship_to."):
        document = ORDER | {"ship_to": {"country": "SG", field.partition(".")[2]: marker}}
    else:
        document = ORDER | {field: marker}
    whole: bytes = msgpack.packb(document)
    return whole.replace(msgpack.packb(marker), encoding)


def json_with(field: str, value: Any) -> bytes:
    if field in ("sku", "quantity"):
        return json_order(lines=[{"sku": "A", "quantity": 1, field: value}])
    if field.startswith("ship_to."):
        return json_order(ship_to={"country": "SG", field.partition(".")[2]: value})
    return json_order(**{field: value})


MSGPACK_FIELDS = ("quantity", "sku", "lines", "sale", "market", "channel", "lane", "ship_to", "ship_to.name", "x")


async def test_any_messagepack_value_is_no_order_and_well_formed(shop: Shop) -> None:
    cases = msgpack_cases()
    answers = await place(shop, [case.encoding for case in cases], MSGPACK)
    wrong = [(case, answer) for case, answer in zip(cases, answers, strict=True) if answer.problem != "invalid-order"]
    assert not wrong


async def test_every_encoding_of_a_value_in_any_field_is_judged_as_its_json(shop: Shop) -> None:
    cases = [(case, field) for case in msgpack_cases() for field in MSGPACK_FIELDS]
    answers = await place(shop, [packed_with(field, case.encoding) for case, field in cases], MSGPACK)
    of_json = iter(await place(shop, [json_with(field, case.in_json) for case, field in cases if case.has_json]))
    wrong = []
    for (case, field), answer in zip(cases, answers, strict=True):
        wanted = next(of_json) if case.has_json else None
        if wanted is not None:
            right = (answer.status, answer.problem) == (wanted.status, wanted.problem)
        else:
            right = answer.problem == "invalid-order"
        if not right:
            wrong.append(f"{field} = {case}: {answer}, as JSON {wanted or 'none'}")
    assert not wrong, "\n".join(wrong[:20])
    print(Counter(answer.status for answer in answers))


async def test_messagepack_cut_off_anywhere_is_malformed(shop: Shop) -> None:
    whole: bytes = msgpack.packb(ORDER | {"ship_to": {"country": "SG", "name": "x" * 40}})
    answers = await place(shop, [whole[:length] for length in range(len(whole))] + [whole + b"\xc0"], MSGPACK)
    assert {answer.problem for answer in answers} == {"malformed"}


async def test_an_order_is_the_same_in_json_and_in_messagepack(shop: Shop) -> None:
    body = ORDER | {"ship_to": {"country": "SG", "name": "陳大文"}, "lane": "cainiao-standard"}
    key = next(_keys)
    first, second, other = await ask(
        shop.port,
        post_order(json.dumps(body).encode(), shop.token, key),
        post_order(msgpack.packb(body), shop.token, key, MSGPACK),
        post_order(msgpack.packb(body | {"lane": "air"}), shop.token, key, MSGPACK),
    )
    assert (first.status, second.status) == (201, 201)
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["content-type"] == MSGPACK
    assert msgpack.unpackb(second.body) == first.json()
    assert other.problem == "idempotency-mismatch"


# --- strings ---

TEXTS = ("name", "street", "street2", "district", "city", "region", "postcode", "phone", "email")
NAMES = ("sku", "sale", "market", "channel", "lane", "ship_to.country")


def naughty() -> list[str]:
    strings: list[str] = (corpora.load("strings/blns.json") or {"strings": []})["strings"]
    # What the collection has none of, and COPY text, the journal and the answers' templates could stumble over.
    return [
        *strings,
        "\\N",
        "\\.",
        "a\tb",
        "a\nb",
        "a\r\nb",
        "\\t",
        "\\",
        "{}",
        '"',
        "%s",
        "\x7f\x80",
        "\u2028",
        "a\0b",
    ]


class Kept(NamedTuple):
    """An order that was taken: its id, its shopper's token, and what the ledger must say of it, by column."""

    id: str
    token: str
    columns: dict[str, Any]


async def is_kept(shop: Shop, kept: list[Kept]) -> None:
    """Each order is read back equal, from its page and from the ledger's row."""
    pages = await ask_many(shop.port, [get(f"/v1/orders/{one.id}", one.token) for one in kept])
    for one, page in zip(kept, pages, strict=True):
        assert page.status == 200, page
        shown = page.json()
        assert (shown["id"], shown["channel"]) == (one.id, one.columns.get("channel", "direct"))
    rows = await _rows(shop, [one.id for one in kept])
    wrong = []
    for one in kept:
        row = dict(rows[one.id])
        row["ship_to"] = None if row["ship_to"] is None else json.loads(row["ship_to"])
        wrong += [(name, value, row[name]) for name, value in one.columns.items() if row[name] != value]
    assert not wrong


async def _rows(shop: Shop, ids: list[str]) -> dict[str, asyncpg.Record]:
    """The ledger's rows of all these orders, once the writer has brought them there."""
    ledger = await asyncpg.connect(shop.ledger_url)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                rows = await ledger.fetch("SELECT * FROM orders WHERE id = ANY($1)", ids)
                if len(rows) >= len(set(ids)):
                    return {row["id"]: row for row in rows}
                await asyncio.sleep(0.05)
    finally:
        await ledger.close()


@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "raw"])
async def test_a_naughty_address_is_kept_to_the_letter_or_refused(shop: Shop, escaped: bool) -> None:
    strings = naughty()
    cases = [(text, field) for text in strings for field in TEXTS]
    bodies = [
        json.dumps(ORDER | {"ship_to": {"country": "SG", field: text}}, ensure_ascii=escaped).encode(
            "utf-8", "surrogatepass"
        )
        for text, field in cases
    ]
    answers = await place(shop, bodies)
    kept = []
    for (text, field), answer in zip(cases, answers, strict=True):
        if answer.status == 201:
            kept.append(Kept(answer.json()["id"], shop.token, {"ship_to": {"country": "SG", field: text}}))
        else:
            assert "\0" in text or len(text) > 200 or not _is_unicode(text), (field, text, answer)
            assert answer.problem in ("invalid-order", "malformed")
    await is_kept(shop, kept)
    print(f"{len(kept)} kept of {len(cases)}")


async def test_a_naughty_address_in_messagepack_is_kept_to_the_letter_or_refused(shop: Shop) -> None:
    strings = [text for text in naughty() if _is_unicode(text)]
    bodies = [msgpack.packb(ORDER | {"ship_to": {"country": "SG", "street": text}}) for text in strings]
    answers = await place(shop, bodies, MSGPACK)
    kept = []
    for text, answer in zip(strings, answers, strict=True):
        if answer.status == 201:
            order = msgpack.unpackb(answer.body)
            kept.append(Kept(order["id"], shop.token, {"ship_to": {"country": "SG", "street": text}}))
        else:
            assert "\0" in text or len(text) > 200, (text, answer)
            assert answer.problem == "invalid-order"
    await is_kept(shop, kept)


async def test_a_naughty_name_is_kept_to_the_letter_or_refused(shop: Shop) -> None:
    cases = [(text, field) for text in naughty() for field in NAMES]
    bodies = [
        json_order(ship_to={"country": text}) if field == "ship_to.country" else json_with(field, text)
        for text, field in cases
    ]
    answers = await place(shop, bodies)
    kept = []
    for (text, field), answer in zip(cases, answers, strict=True):
        if answer.status == 201:
            column = {"ship_to": {"country": text}} if field == "ship_to.country" else {field: text}
            kept.append(Kept(answer.json()["id"], shop.token, column))
            assert field in ("channel", "lane", "ship_to.country")
        elif field in ("sku", "sale"):
            assert answer.problem in (f"unknown-{field}", "invalid-order"), (text, answer)
        else:
            assert answer.problem == "invalid-order", (text, field, answer)
    await is_kept(shop, kept)
    print(f"{len(kept)} kept of {len(cases)}")


async def test_a_naughty_field_name_is_refused_and_named(shop: Shop) -> None:
    strings = [text for text in naughty() if text not in ("sale", "lines", "market", "channel", "lane", "ship_to")]
    answers = await place(shop, [json_order(**{text: 1}) for text in strings])
    for text, answer in zip(strings, answers, strict=True):
        assert answer.status == 422, (text, answer)
        assert answer.json()["fields"], (text, answer)


async def test_a_naughty_key_is_kept_to_the_letter_or_refused(shop: Shop) -> None:
    # A line's end would be the end of the header: such a string can't be a client's key, whatever it wants.
    strings = [text for text in naughty() if "\r" not in text and "\n" not in text]
    kept, ids = [], Counter[str]()
    for quoted in (False, True):
        for text in strings:
            raw = text.encode("utf-8", "surrogatepass")
            key = b'"' + raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"' if quoted else raw
            (answer,) = await ask(shop.port, post_order(json_order(), shop.token, key))
            if answer.status == 201:
                order_id = answer.json()["id"]
                ids[order_id] += 1
                # What stands in quotes already is the same key without them.
                inner = text[1:-1] if text.startswith('"') else text
                value = text if quoted else inner.strip(" \t")
                kept.append(Kept(order_id, shop.token, {"idempotency_key": value}))
            else:
                printable = 1 <= len(text) <= 64 and all(" " <= character <= "~" for character in text)
                bare = printable and text == text.strip(" ") and not text.startswith('"')
                assert not (printable if quoted else bare), (quoted, text, answer)
                assert answer.problem in ("malformed", "idempotency-key-missing"), (quoted, text, answer)
    await is_kept(shop, kept)
    assert sum(count > 1 for count in ids.values()) > len(strings) / 4, "quoted and bare are not the same key"


async def test_a_naughty_shopper_is_kept_to_the_letter_or_has_no_token(shop: Shop) -> None:
    tokens = {}
    for text in naughty():
        try:
            tokens[text] = shop.minted(text)
        except (ValueError, UnicodeError):
            assert (
                not text
                or len(text) > 128
                or not _is_unicode(text)
                or any(c < " " or "\x7f" <= c <= "\x9f" for c in text)
            )
    answers = await ask_many(shop.port, [post_order(json_order(), token, "one") for token in tokens.values()])
    assert {answer.status for answer in answers} == {201}
    kept = [
        Kept(answer.json()["id"], token, {"shopper": text})
        for (text, token), answer in zip(tokens.items(), answers, strict=True)
    ]
    assert len({one.id for one in kept}) == len(kept), "two shoppers have one order"
    await is_kept(shop, kept)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


# --- tokens ---


async def test_no_token_of_others_buys_anything(shop: Shop) -> None:
    tokens = []
    for name in ("jwt/wycheproof_jws.json", "jwt/wycheproof_jwk.json"):
        for group in (corpora.load(name) or {"testGroups": []})["testGroups"]:
            tokens += [vector["jws"] for vector in group["tests"]]
    texts = [token if isinstance(token, str) else json.dumps(token) for token in tokens]
    answers = await ask_many(shop.port, [post_order(json_order(), text, next(_keys)) for text in texts], window=4)
    for text, answer in zip(texts, answers, strict=True):
        assert (answer.status, answer.problem) == (401, "unauthenticated"), (text, answer)
        assert "www-authenticate" in answer.headers
    pages = await ask_many(shop.port, [get("/v1/shoppers/me/orders", text) for text in texts], window=1)
    assert {page.status for page in pages} <= {401}
