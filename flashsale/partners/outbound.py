"""Requests to addresses that strangers chose: a webhook endpoint must not reach into the house.

A name is resolved once; every address that it has must be public, and the connection is made to those very addresses,
so that a name that points elsewhere a moment later (DNS rebinding) changes nothing. TLS checks the name. No redirects,
no proxy, no cookies; one time-out over the whole exchange; the answer is read up to a bound and never decompressed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]

URL_MAX = 2048  # characters
ANSWER_MAX_BYTES = 4096  # of an answer's body: enough for an error's text in the delivery log
ADDRESSES_MAX = 32  # of one name; more is no endpoint
ANSWER_BODY_S = 1.0  # how long the body is waited for: the status has said all that counts
LOOKUPS_MAX = 32  # names looked up at once; each may hold a thread as long as its name server is silent
PORTS = "443, or 1024 and above"
"""Below 1024 other protocols live (mail, SSH, ...) to which a POST might say something; above, servers of one's own."""

# What Python's table of special addresses lets pass, or did in the releases we run on. Global IPv6 unicast is 2000::/3:
# outside it lie NAT64 (64:ff9b::/96), mapped and compatible IPv4, private, link-local and multicast addresses.
_GLOBAL_IPV6 = IPv6Network("2000::/3")
_SPECIAL: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15"),
        "240.0.0.0/4",
        "2001::/23",  # the IETF's own: Teredo (2001::/32), ORCHID, benchmarking
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",
    )
)
_DEFAULT_PORT = {"https": 443, "http": 80}
_AUTHORITY_END = re.compile("[/?#]")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9.])?")
_NUMBER = re.compile(r"(0[xX][0-9A-Fa-f]*|[0-9]+)\.?")
_PLAIN = re.compile(rf"[!-\[\]-~]{{1,{URL_MAX}}}")  # printable ASCII without space and backslash


NOT_PUBLIC = "the host has no public address, or is not one that is sent to"


class Forbidden(Exception):
    """This address is not one that we send to; the text says why."""


class Unanswered(Exception):
    """No answer came: no address, no connection, no TLS, or not within the time."""


class Answer(NamedTuple):
    """What an endpoint said: its status, the first bytes of its body, and how long that took."""

    status: int
    text: str
    ms: int


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet's hosts, by its own bits and by what hides in them."""
    if isinstance(address, IPv6Address) and (address not in _GLOBAL_IPV6 or address.scope_id is not None):
        return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in _SPECIAL if network.version == address.version)


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """The allow-list of the settings. Raises ValueError for what is no network."""
    return tuple(ip_network(text) for text in texts)


async def system_lookup(host: str, port: int) -> Sequence[str]:
    """Every address of `host`, from the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(
        _lookups(), lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    )
    return [str(entry[4][0]) for entry in found]


_threads: list[ThreadPoolExecutor] = []


def _lookups() -> ThreadPoolExecutor:
    # Threads of our own: the loop's are few (uvloop has four), and a silent name server would hold up everybody.
    if not _threads:
        _threads.append(ThreadPoolExecutor(LOOKUPS_MAX, thread_name_prefix="lookup"))
    return _threads[0]


class Outbound:
    """Sends to strangers. `allow` names networks that may be private, and plain http too; `lookup` resolves names."""

    def __init__(
        self,
        *,
        timeout_s: float,
        allow: Sequence[Network] = (),
        lookup: Lookup = system_lookup,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._allow = tuple(allow)
        self._lookup = lookup
        self._tls: ssl.SSLContext | bool = tls if tls is not None else True

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    def parse(self, text: str) -> URL:
        """The URL, if it is one that we would send to as far as its text tells. Raises Forbidden."""
        if not _PLAIN.fullmatch(text):
            raise Forbidden(f"a URL is 1 to {URL_MAX} printable ASCII characters without spaces and backslashes")
        try:
            url = URL(text)
            host, port = url.raw_host, url.port
        except ValueError:
            raise Forbidden("this is no URL") from None
        if url.scheme not in ("https", "http") or not host:
            raise Forbidden("a URL begins with https:// and a host")
        if url.scheme == "http" and not self._allow:
            raise Forbidden("only https is sent to")
        if "@" in _AUTHORITY_END.split(text.partition("://")[2])[0]:
            raise Forbidden("a URL carries no user name and no password")
        if "#" in text:
            raise Forbidden("a URL carries no fragment")
        if port is None or not (port >= 1024 or port == _DEFAULT_PORT[url.scheme]):
            raise Forbidden(f"the port is {PORTS}")
        literal = _literal(host)
        if literal is not None:
            self._check(literal, url)
        elif not _HOST.fullmatch(host) or _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
            # A last label that is a number makes the whole an address in one of its old spellings: 127.1, 0x7f000001.
            raise Forbidden("the host is neither a name nor an address in its usual form")
        return url

    async def addresses(self, url: URL) -> list[Address]:
        """Where the URL's host is now, each address checked. Raises Forbidden if any is private, OSError if there is
        none."""
        host, port = url.raw_host or "", url.port or 443
        literal = _literal(host)
        if literal is not None:
            found: list[Address] = [literal]
        else:
            texts = list(dict.fromkeys(await self._lookup(host, port)))
            if not texts:
                raise OSError(f"{host} has no address")
            if len(texts) > ADDRESSES_MAX:
                raise Forbidden(f"the name has more than {ADDRESSES_MAX} addresses")
            found = [ip_address(text) for text in texts]
        for address in found:
            self._check(address, url)
        return found

    async def post(self, text: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Posts `body` to the URL and reads the answer. Raises Forbidden before anything is sent, Unanswered."""
        url = self.parse(text)
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(url, await self.addresses(url), body, headers, began)
        except TimeoutError:
            raise Unanswered(f"no answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            raise Unanswered(_reason(fault)) from None

    async def _exchange(
        self, url: URL, addresses: Sequence[Address], body: bytes, headers: Mapping[str, str], began: float
    ) -> Answer:
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(addresses),
            use_dns_cache=False,
            ssl=self._tls,
            force_close=True,  # nothing is left open to a stranger
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the whole exchange is timed by post()
                read_bufsize=ANSWER_MAX_BYTES,
            ) as session,
            session.post(
                url, data=body, headers={**headers, "Accept-Encoding": "identity"}, allow_redirects=False
            ) as response,
        ):
            left_s = self._timeout_s - (time.monotonic() - began) - 0.05
            text = await _excerpt(response, min(ANSWER_BODY_S, max(left_s, 0.0)))
            response.close()  # what more it says is not read
            return Answer(response.status, text, round((time.monotonic() - began) * 1000))

    def _check(self, address: Address, url: URL) -> None:
        if any(address in network for network in self._allow if network.version == address.version):
            return
        if url.scheme != "https":
            raise Forbidden("only https is sent to")
        if not is_public(address):
            # One text whatever the name resolves to: else anybody could ask what our resolver knows of inner names.
            raise Forbidden(NOT_PUBLIC)


class _Pinned(AbstractResolver):
    """Answers with the addresses that were checked, whatever the name's servers say by now."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        return None


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


async def _excerpt(response: aiohttp.ClientResponse, within_s: float) -> str:
    """The body's first bytes. The status is what counts: a body that is late or cut short does not undo it."""
    kept = bytearray()
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(within_s):
            while len(kept) < ANSWER_MAX_BYTES and (chunk := await response.content.read(ANSWER_MAX_BYTES - len(kept))):
                kept += chunk
    return kept.decode("utf-8", "replace")


def _reason(fault: BaseException) -> str:
    text = " ".join(str(fault).split())
    return (f"{type(fault).__name__}: {text}" if text else type(fault).__name__)[:300]
