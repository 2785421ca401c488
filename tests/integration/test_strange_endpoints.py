"""Endpoints that mean ill or hang: nothing of the house is reached, nobody holds the sender longer than its time."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flashsale.partners import outbound as outbound_module
from flashsale.partners.outbound import Answer, Forbidden, Outbound, Unanswered
from tests.integration.receiver import LOOPBACK, OK, Receiver

TIMEOUT_S = 0.6
HEADERS = {"webhook-id": "msg_1"}


def sender(**options: Any) -> Outbound:
    return Outbound(**{"timeout_s": TIMEOUT_S, "allow": LOOPBACK, **options})


async def post(url: str, **options: Any) -> Answer:
    return await sender(**options).post(url, b"{}", HEADERS)


async def test_the_answers_status_and_text_come_back() -> None:
    async with Receiver() as receiver:
        answer = await post(receiver.url)
        assert (answer.status, answer.text) == (200, "ok")
        [got] = receiver.got
        assert (got.path, got.body, got.id) == ("/hook", b"{}", "msg_1")
        assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
        assert "cookie" not in got.headers
        assert got.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with Receiver() as inner:
        head = f"HTTP/1.1 {status} Moved\r\nLocation: {inner.url}\r\nContent-Length: 0\r\n\r\n".encode()
        async with Receiver(head) as outer:
            assert (await post(outer.url)).status == status
        assert inner.connections == 0


async def test_a_private_address_gets_no_connection() -> None:
    async with Receiver() as receiver:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
            with pytest.raises(Forbidden):
                await post(f"https://{host}:{receiver.port}/", allow=())
        assert receiver.connections == 0


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "::1", "fd00::1", "64:ff9b::7f00:1", "100.64.0.1"])
async def test_a_name_of_a_private_address_is_refused(address: str) -> None:
    async def lookup(host: str, port: int) -> Sequence[str]:
        return [address]

    with pytest.raises(Forbidden):
        await post("https://merchant.example/", allow=(), lookup=lookup)


async def test_a_name_is_looked_up_once_and_its_checked_address_is_the_one_that_is_reached() -> None:
    asked = 0

    async def rebinding(host: str, port: int) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return ["127.0.0.1"] if asked == 1 else ["10.0.0.1"]

    async with Receiver() as receiver:
        answer = await post(f"http://merchant.example:{receiver.port}/", lookup=rebinding)
        assert (answer.status, asked) == (200, 1)
        assert receiver.got[0].headers["host"] == f"merchant.example:{receiver.port}"


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as proxy, Receiver() as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await post(receiver.url)
        assert (proxy.connections, receiver.connections) == (0, 1)


async def hang(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def drip_head(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def informal(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)


async def endless_head(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1_000_000):
        writer.write(b"X-%d: y\r\n" % number)
        await writer.drain()


async def no_http(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")


async def nothing(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


@pytest.mark.parametrize("behaviour", [hang, drip_head, informal, endless_head, no_http, nothing])
async def test_an_endpoint_without_a_proper_answer_is_cut_off(behaviour: Any) -> None:
    async with Receiver(behaviour=behaviour) as receiver:
        began = time.monotonic()
        with pytest.raises(Unanswered):
            await post(receiver.url)
        assert time.monotonic() - began < TIMEOUT_S + 0.5
        async with asyncio.timeout(5):
            while receiver.open:  # noqa: ASYNC110  # the other side of a socket
                await asyncio.sleep(0.01)


async def drip_body(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 Broken\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def huge_body(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 Broken\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100_000):
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


async def zip_bomb(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    import zlib

    packed = zlib.compress(bytes(50_000_000), 9)
    writer.write(b"HTTP/1.1 500 Broken\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(packed))
    writer.write(packed)
    await writer.drain()


@pytest.mark.parametrize("behaviour", [drip_body, huge_body, zip_bomb])
async def test_a_body_that_does_not_end_is_cut_and_its_status_counts(behaviour: Any) -> None:
    async with Receiver(behaviour=behaviour) as receiver:
        began = time.monotonic()
        answer = await post(receiver.url)
        assert answer.status == 500
        assert len(answer.text) <= outbound_module.ANSWER_MAX_BYTES
        assert time.monotonic() - began < TIMEOUT_S + 0.5


async def test_an_endpoint_that_never_takes_the_connection_is_cut_off() -> None:
    async def nowhere(host: str, port: int) -> Sequence[str]:
        return ["192.0.2.1"]  # documentation's: nobody answers there

    from flashsale.partners.outbound import networks

    began = time.monotonic()
    with pytest.raises(Unanswered):
        await post("https://merchant.example/", allow=networks(["192.0.2.0/24"]), lookup=nowhere)
    assert time.monotonic() - began < TIMEOUT_S + 0.5


async def test_a_silent_name_server_is_cut_off() -> None:
    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(30)
        return []

    with pytest.raises(Unanswered):
        await post("https://merchant.example/", lookup=silent)


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for merchant.example that signs itself, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=merchant.example", "-addext", "subjectAltName=DNS:merchant.example",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_text(key.read_text() + cert.read_text())
    return both


async def tls_post(certificate: Path, name: str, tls: ssl.SSLContext | None) -> tuple[Answer, list[str | None]]:
    names: list[str | None] = []
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate)
    serving.sni_callback = lambda _socket, asked, _context: names.append(asked)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await writer.drain()
        writer.close()

    async def lookup(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    service = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=serving)
    port = service.sockets[0].getsockname()[1]
    try:
        return await post(f"https://{name}:{port}/", lookup=lookup, tls=tls, timeout_s=3), names
    finally:
        service.close()


async def test_tls_asks_for_the_name_and_checks_it_although_the_address_is_pinned(certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    answer, names = await tls_post(certificate, "merchant.example", trusting)
    assert (answer.status, names) == (200, ["merchant.example"])
    with pytest.raises(Unanswered, match=r"[Cc]ertificate"):
        await tls_post(certificate, "other.example", trusting)


async def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    with pytest.raises(Unanswered, match=r"[Cc]ertificate"):
        await tls_post(certificate, "merchant.example", None)
