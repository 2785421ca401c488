"""Framing judged by its promises: the same message however it comes in, and nothing but a refusal for rubbish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.errors import Refused
from flashsale.front import framing
from flashsale.front.framing import (
    CHUNK_LINE_MAX,
    HEADERS_MAX,
    TRAILERS_MAX,
    ChunkedBody,
    canonical,
    check_part,
    parse_head,
)

LIMIT = 4096
HOST = b"Host: a"


def head(*lines: bytes, first: bytes = b"POST /v1/orders HTTP/1.1") -> bytes:
    return b"\r\n".join([first, HOST, *lines])


def refusal(raw: bytes) -> str:
    """The problem's name, "" if the head is good."""
    try:
        parse_head(raw)
    except Refused as refused:
        return refused.name
    return ""


# --- heads ---

RUBBISH = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.sampled_from(
            b"GET|POST| |/|*|HTTP/1.1|HTTP/1.0|\r\n|\n|\r|Host|:|a|Content-Length|Transfer-Encoding|chunked|Connection"
            b"|close|Expect|100-continue|0|5|-1|+1|,|\t|\0|\xff|http://|@|#|?|%|Upgrade".split(b"|")
        ),
        max_size=40,
    ).map(b"".join),
)


@given(RUBBISH, st.booleans())
def test_a_head_of_any_bytes_is_parsed_or_refused(raw: bytes, whole: bool) -> None:
    try:
        parsed = parse_head(raw, whole=whole)
    except Refused as refused:
        assert refused.name in ("malformed", "headers-too-large")
        return
    if not whole:  # only what has come was looked at: its Host may still come
        return
    lent = canonical(parsed, b"", parsed.close)
    again = parse_head(lent[:-4])
    assert (again.method, again.target, again.minor) == (parsed.method, parsed.target, parsed.minor)
    assert not again.chunked
    assert again.length == 0


@given(RUBBISH)
def test_a_head_that_is_good_is_not_refused_while_it_comes_in(raw: bytes) -> None:
    if refusal(raw):
        return
    whole = raw + b"\r\n\r\n"
    for length in range(len(whole)):
        if not whole[:length].startswith(b"\r\n"):  # empty lines before a request are dropped before it is looked at
            check_part(whole[:length], lines=True)


@given(RUBBISH, st.booleans())
def test_the_beginning_of_a_head_is_let_be_or_refused(part: bytes, lines: bool) -> None:
    try:
        check_part(part, lines)
    except Refused as refused:
        assert refused.name in ("malformed", "headers-too-large")


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5", b"content-length: 6"),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: +5",),
        (b"Content-Length: 0x5",),
        (b"Content-Length: 05",),
        (b"Content-Length: \xb2",),
        (b"Content-Length:",),
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: identity",),
        (b"Transfer-Encoding: \x0bchunked",),
        (b"Content-Length : 5",),
        (b"Idempotency-Key: a", b"idempotency-key: b"),
        (b"Authorization: Bearer a", b"AUTHORIZATION: Bearer b"),
        (b"X: a", b" folded"),
        (b"X: a", b"\tfolded"),
        (b"X: a\0b",),
        (b"X: a\rb",),
        (b"X: a\nb: c",),
        (b": nameless",),
        (b"no colon",),
        (b"Host: b",),
        (b"Expect: a miracle",),
    ],
)
def test_a_head_that_two_readers_could_read_differently_is_refused(lines: tuple[bytes, ...]) -> None:
    assert refusal(head(*lines)) == "malformed"


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1 ",
        b"GET  / HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET / HTTP/1.2",
        b"GET / HTTP/2.0",
        b"GET / http/1.1",
        b"GET /",
        b"GET / x HTTP/1.1",
        b"GET x HTTP/1.1",
        b"GET /#f HTTP/1.1",
        b"GET ftp://a/ HTTP/1.1",
        b"GET http:///x HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"GET * HTTP/1.1",
        b"",
    ],
)
def test_a_request_line_is_exact(first: bytes) -> None:
    assert refusal(head(first=first)) == "malformed"


@pytest.mark.parametrize(
    ("first", "target"),
    [
        (b"GET http://a/x?y HTTP/1.1", b"/x?y"),
        (b"GET HTTPS://a?y HTTP/1.1", b"/?y"),
        (b"GET http://user@a HTTP/1.1", b"/"),
        (b"OPTIONS * HTTP/1.1", b"*"),
        (b"CONNECT a:1 HTTP/1.1", b"a:1"),
        (b"GET //x HTTP/1.1", b"//x"),
    ],
)
def test_targets_are_read_in_every_form(first: bytes, target: bytes) -> None:
    assert parse_head(head(first=first)).target == target


def test_a_host_is_wanted_since_1_1_and_connections_end_by_default_before() -> None:
    assert refusal(b"GET / HTTP/1.1") == "malformed"
    assert parse_head(b"GET / HTTP/1.0").close
    assert not parse_head(b"GET / HTTP/1.0\r\nConnection: Keep-Alive").close
    assert not parse_head(head()).close
    assert parse_head(head(b"Connection: te, Close")).close
    assert parse_head(head(b"Connection: te", b"connection: CLOSE")).close


def test_header_lines_are_counted() -> None:
    assert refusal(head(*[b"X: y"] * (HEADERS_MAX - 1))) == ""
    assert refusal(head(*[b"X: y"] * HEADERS_MAX)) == "headers-too-large"


# --- chunked bodies ---

EXTENSION = st.sampled_from([b"", b";a", b" ; a=b", b';a="b;c\\""', b";a\t=\tb;c"])


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A chunked body as sent, and its data."""
    parts = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    raw = b"".join(
        draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % len(part) + draw(EXTENSION) + b"\r\n" + part + b"\r\n"
        for part in parts
    )
    trailers = draw(st.lists(st.sampled_from([b"X: y\r\n", b"Empty:\r\n", b"Z: \xff\r\n"]), max_size=3))
    return raw + b"0" + draw(EXTENSION) + b"\r\n" + b"".join(trailers) + b"\r\n", b"".join(parts)


def fed(pieces: list[bytes]) -> tuple[str, bytes, bytes]:
    """What becomes of a body that comes in pieces: the refusal's name or "done" or "", its data, and what is left."""
    body = ChunkedBody(LIMIT)
    left = b""
    for piece in pieces:
        left += piece
        if body.done:
            continue
        try:
            left = left[body.feed(left, 0) :]
        except Refused as refused:
            return refused.name, b"", b""
    return "done" if body.done else "", bytes(body.body), left


def pieces_of(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(raw) + 1) for cut in cuts)
    return [raw[start:end] for start, end in zip([0, *places], [*places, len(raw)], strict=True)]


CUTS = st.lists(st.integers(0, 10**6), max_size=12)


@given(chunked(), CUTS, st.binary(max_size=10))
def test_a_chunked_body_is_the_same_however_it_is_split(
    sent: tuple[bytes, bytes], cuts: list[int], rest: bytes
) -> None:
    raw, data = sent
    assert fed([raw + rest]) == ("done", data, rest)
    assert fed(pieces_of(raw + rest, cuts)) == ("done", data, rest)
    assert fed([bytes([byte]) for byte in raw]) == ("done", data, b"")


@given(chunked(), CUTS, st.data())
def test_a_damaged_body_gets_the_same_verdict_however_it_is_split(
    sent: tuple[bytes, bytes], cuts: list[int], data: st.DataObject
) -> None:
    raw, _ = sent
    place = data.draw(st.integers(0, len(raw)))
    damage = data.draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"0", b"f", b";", b'"', b"\0", b"-", b":"]))
    damaged = raw[:place] + damage + raw[place + data.draw(st.integers(0, 2)) :]
    whole = fed([damaged])
    assert fed(pieces_of(damaged, cuts))[:2] == whole[:2]


@given(st.binary(max_size=200), CUTS)
def test_any_bytes_are_a_body_or_refused(raw: bytes, cuts: list[int]) -> None:
    assert fed(pieces_of(raw, cuts))[0] in ("", "done", "malformed", "too-large", "headers-too-large")


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"%x\r\n" % (LIMIT + 1), "too-large"),
        (b"800\r\n" + b"x" * 0x800 + b"\r\n801\r\n", "too-large"),
        (b"fffffffff\r\n", "malformed"),
        (b"\r\n", "malformed"),
        (b"5 \r\nhello\r\n", "malformed"),
        (b"0x5\r\nhello\r\n", "malformed"),
        (b"-5\r\n", "malformed"),
        (b"5\nhello\r\n", "malformed"),
        (b"5\r\nhellO!\r\n", "malformed"),
        (b"5\r\nhello\n", "malformed"),
        (b"5;" + b"x" * CHUNK_LINE_MAX, "malformed"),
        (b"0\r\nContent-Length: 5\r\n\r\n", "malformed"),
        (b"0\r\nTransfer-Encoding: chunked\r\n\r\n", "malformed"),
        (b"0\r\nX y\r\n\r\n", "malformed"),
        (b"0\r\n folded: y\r\n\r\n", "malformed"),
        (b"0\r\nX: \0\r\n\r\n", "malformed"),
        (b"0\r\nX: " + b"y" * TRAILERS_MAX + b"\r\n\r\n", "headers-too-large"),
        (b"0\r\n" + b"X: y\r\n" * (TRAILERS_MAX // 6 + 1), "headers-too-large"),
    ],
)
def test_what_is_no_chunked_body_is_refused_as_soon_as_it_shows(raw: bytes, name: str) -> None:
    assert fed([raw])[0] == name
    assert fed([bytes([byte]) for byte in raw])[0] == name


# --- what a reader behind gets ---


def test_a_lent_message_has_one_framing_and_only_headers_that_a_page_heeds() -> None:
    parsed = parse_head(
        head(
            b"Transfer-Encoding: chunked",
            b"Upgrade: h2c",
            b"Connection: upgrade",
            b"Accept: x",
            b"X-Y: z",
            b"Cookie: c",
        )
    )
    assert canonical(parsed, b"abc", close=False) == (
        b"POST /v1/orders HTTP/1.1\r\nHost: a\r\nAccept: x\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc"
    )


_PLAIN = (
    b"POST /v1/orders HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer a.b.c\r\n"
    b"Idempotency-Key: k\r\nContent-Length: 2\r\n"
)


def test_a_plain_head_has_no_more_lines_than_any_other() -> None:
    fits = _PLAIN + b"X-A: b\r\n" * (framing.HEADERS_MAX - 5) + b"\r\n"
    assert framing.PLAIN_ORDER.match(fits) is not None
    assert framing.PLAIN_ORDER.match(_PLAIN + b"X-A: b\r\n" * (framing.HEADERS_MAX - 4) + b"\r\n") is None


@pytest.mark.parametrize(
    "line", [b"Host: h", b"Authorization: Bearer a.b.c", b"Idempotency-Key: k", b"Content-Length: 2"]
)
def test_a_header_that_is_there_twice_makes_no_plain_head(line: bytes) -> None:
    head = _PLAIN + line + b"\r\n"
    assert framing.PLAIN_ORDER.match(head + b"\r\n") is None
    with pytest.raises(Refused):
        framing.parse_head(head[:-2])
