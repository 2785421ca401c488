"""Where a webhook may go, and how it is signed: URLs, addresses, the published vectors of Standard Webhooks."""

from __future__ import annotations

import time
from datetime import UTC, datetime, tzinfo
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from flashsale.ledger.webhooks import Due
from flashsale.partners.outbound import NOT_PUBLIC, Forbidden, Outbound, is_public, networks
from flashsale.pipeline.webhooks import signed
from tests import corpora

VECTORS = [
    vector for vector in corpora.load("webhooks/signature_vectors.json") if vector["scheme"] == "standard-webhooks"
]
# IANA's special-purpose registries, and what hides an IPv4 address in an IPv6 one.
SPECIAL = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "::/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "99.83.190.102", "203.0.114.1", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e"]


def inside(text: str) -> st.SearchStrategy[IPv4Address | IPv6Address]:
    network = ip_network(text)
    return st.integers(0, network.num_addresses - 1).map(lambda offset: network[offset])


@given(st.sampled_from(SPECIAL).flatmap(inside))
def test_no_address_of_a_special_range_is_public(address: IPv4Address | IPv6Address) -> None:
    assert not is_public(address)


@given(st.ip_addresses())
def test_what_is_public_is_global_and_nothing_hides_in_it(address: IPv4Address | IPv6Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not (address.is_multicast or address.is_private or address.is_loopback or address.is_link_local)
        if isinstance(address, IPv6Address):
            assert address.ipv4_mapped is None
            assert address.sixtofour is None
            assert address.teredo is None


@given(st.ip_addresses(v=4))
def test_every_global_address_is_public(address: IPv4Address) -> None:
    beyond_python = (IPv4Network("192.88.99.0/24"), IPv4Network("192.0.0.0/24"), IPv4Network("198.18.0.0/15"))
    if address.is_global and not address.is_multicast and not any(address in network for network in beyond_python):
        assert is_public(address)


@given(inside("2400::/6"))
def test_every_global_ipv6_address_is_public(address: IPv6Address) -> None:
    assert is_public(address) or address in IPv6Network("2620:4f:8000::/48")


@pytest.mark.parametrize("text", PUBLIC)
def test_public_hosts_are_reached(text: str) -> None:
    assert is_public(ip_address(text))


def test_a_scope_makes_an_address_this_machines_own() -> None:
    assert not is_public(IPv6Address("2606:4700:4700::1111%eth0"))


@pytest.mark.parametrize(
    "url",
    [
        "https://merchant.example/hooks",
        "https://merchant.example",
        "https://merchant.example:8443/hooks?shop=1",
        "https://8.8.8.8/hooks",
        "https://[2606:4700:4700::1111]/hooks",
        "https://merchant.example?mail=a@b.example",
        "https://xn--mnchen-3ya.example/",
    ],
)
def test_a_public_https_url_is_taken(url: str) -> None:
    Outbound(timeout_s=1).parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://merchant.example/hooks",
        "ftp://merchant.example/",
        "file:///etc/passwd",
        "merchant.example/hooks",
        "//merchant.example/",
        "https://",
        "https:///hooks",
        "https://user@merchant.example/",
        "https://user:password@merchant.example/",
        "https://@merchant.example/",
        "https://merchant.example:22/",
        "https://merchant.example:80/",
        "https://merchant.example:0/",
        "https://merchant.example:99999/",
        "https://merchant.example/#part",
        "https://merchant.example\\@10.0.0.1/",
        "https://merchant.example/a b",
        "https://merchant.example/\r\nHost: x",
        "https://mérchant.example/",
        "https://" + "a" * 2100 + ".example/",
        "https://127.0.0.1/",
        "https://10.1.2.3/",
        "https://169.254.169.254/latest/meta-data",
        "https://0.0.0.0/",
        "https://0/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://127%2e0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::a00:1]/",
        "https://[2002:a00:1::]/",
        "https://[fe80::1%25eth0]/",
        "https://[::]/",
        "https://merchant.example%00.evil/",
        "",
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(Forbidden):
        Outbound(timeout_s=1).parse(url)


async def test_one_private_address_of_many_refuses_the_name() -> None:
    async def lookup(host: str, port: int) -> list[str]:
        return ["8.8.8.8", "2606:4700:4700::1111", "10.0.0.1"]

    outbound = Outbound(timeout_s=1, lookup=lookup)
    with pytest.raises(Forbidden) as refused:
        await outbound.addresses(outbound.parse("https://merchant.example/"))
    assert str(refused.value) == NOT_PUBLIC  # what our resolver knows of inner names is nobody's business


async def test_a_name_of_too_many_addresses_is_refused() -> None:
    async def lookup(host: str, port: int) -> list[str]:
        return [f"8.8.8.{number}" for number in range(100)]

    outbound = Outbound(timeout_s=1, lookup=lookup)
    with pytest.raises(Forbidden):
        await outbound.addresses(outbound.parse("https://merchant.example/"))


async def test_plain_http_goes_to_allowed_networks_alone() -> None:
    async def lookup(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "localhost" else ["8.8.8.8"]

    outbound = Outbound(timeout_s=1, lookup=lookup, allow=networks(["127.0.0.0/8"]))
    assert await outbound.addresses(outbound.parse("http://localhost:8000/"))
    assert await outbound.addresses(outbound.parse("https://merchant.example/"))
    with pytest.raises(Forbidden):
        await outbound.addresses(outbound.parse("http://merchant.example/"))
    with pytest.raises(Forbidden):
        outbound.parse("http://10.0.0.1:8000/")


def due(secret: str) -> Due:
    return Due(
        *("ep.o1.2", "pending", 0, 0, 0, "ep", "https://merchant.example/", secret, False, None),
        *("order.paid", "o1", 2, 1_700_000_000_123, "paid", "captured", '{"é": "ü"}', "double11", "SG", "web"),
    )


SECRET = "whsec_WYMOvDpBhBEFZr8aKQ0IRz39y9SSzkmLFM0aXi+i5EE="


def test_what_is_sent_verifies_with_the_standards_own_library_and_with_no_other_secret() -> None:
    body, headers = signed(due(SECRET), int(time.time()))
    assert Webhook(SECRET).verify(body, headers)["timestamp"] == "2023-11-14T22:13:20.123Z"
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 32).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"paid", b"lost"), headers)


@pytest.mark.skipif(not VECTORS, reason=corpora.absent())
@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
def test_the_published_vectors(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if vector["id"] == "empty-secret":
        with pytest.raises(Exception, match="empty"):
            Webhook(vector["secret"])
        return
    webhook = Webhook(vector["secret"])
    if "headers" not in vector:
        _check_tolerance(webhook, vector["secret"])
        return
    headers = vector["headers"]
    if vector["expect"].startswith("valid"):
        # Ours at the vector's second: its signature is among those that the vector has.
        at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        assert webhook.sign(headers["webhook-id"], at, vector["body"]) in headers["webhook-signature"].split(" ")
    _freeze(monkeypatch, 1_614_265_330)
    if vector["expect"].startswith("valid"):
        webhook.verify(vector["body"], headers)
    else:
        with pytest.raises((WebhookVerificationError, ValueError)):
            webhook.verify(vector["body"], headers)


def _check_tolerance(webhook: Webhook, secret: str) -> None:
    now = int(time.time())
    for off, taken in ((-305, False), (305, False), (-290, True), (290, True)):
        body, headers = signed(due(secret), now + off)
        if taken:
            webhook.verify(body, headers)
        else:
            with pytest.raises(WebhookVerificationError):
                webhook.verify(body, headers)


def _freeze(monkeypatch: pytest.MonkeyPatch, at_s: int) -> None:
    """The library has no switch for its tolerance: its clock is set to the vectors' second."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Then:
            return cls.fromtimestamp(at_s, tz)

    monkeypatch.setattr("standardwebhooks.webhooks.datetime", Then)
