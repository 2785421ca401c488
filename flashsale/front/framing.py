"""HTTP/1.1 framing, strict: where a message ends, and whether two readers could disagree about it (RFC 9110, 9112).

The hot path frames every message itself, pages too, so that what reaches aiohttp is whole, canonical and unambiguous.
Whatever is malformed raises Refused; the connection answers and closes. Pure: bytes in, values out.
"""

from __future__ import annotations

import re

from flashsale.errors import Refused

HEADERS_MAX = 100  # header lines of one message, and trailer lines
CHUNK_LINE_MAX = 1024  # a chunk's size and extensions
TRAILERS_MAX = 8 * 1024  # bytes of all trailer lines

_LEGAL = bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100)) + b"\t\r\n"  # in a head; the rest are control characters
_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")  # a CR or LF that is no line's end; a CR may be the last byte so far
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([!-~]+) HTTP/1\.([01])")
_AUTHORITY = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([/?].*)?", re.IGNORECASE)
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,14}")
_CHUNK_EXTENSION = (
    rb"[ \t]*;[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb"(?:[ \t]*=[ \t]*(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|\"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*\"))?"
)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:" + _CHUNK_EXTENSION + rb")*\r\n")
_CHUNK_LINE_SO_FAR = re.compile(rb"(?:[0-9A-Fa-f]{1,8}(?:[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?)\r?)?")

_VALUE = rb"[\t -~]*+\r\n"


def _once(group: int, line: bytes) -> bytes:
    """A header line that may be there once: its value is the group of that number."""
    return rb"(?(%d)(?!)|" % group + line + rb"\r\n)|"


PLAIN_ORDER = re.compile(
    rb"POST /v1/orders HTTP/1\.1\r\n(?:"
    + _once(1, rb"(?i:Host): ?([A-Za-z0-9.:-]++)")
    + _once(2, rb"(?i:Content-Type): ?(application/(?:json|msgpack))")
    + _once(3, rb"(?i:Authorization): ?Bearer ([A-Za-z0-9._-]++)")
    + _once(4, rb"(?i:Idempotency-Key): ?([!#-~]{1,64}+)")
    + _once(5, rb"(?i:Content-Length): ?([1-9][0-9]{0,4})")
    + rb"(?i:Accept): ?\*/\*\r\n|(?i:Connection): ?keep-alive\r\n|"
    + rb"(?i:User-Agent|Accept-Encoding|Accept-Language|Origin|Referer|Sec-[A-Za-z-]+|X-[A-Za-z-]+):"
    + _VALUE
    + rb"){1,%d}+\r\n(?(1)|(?!))(?(2)|(?!))(?(3)|(?!))(?(4)|(?!))(?(5)|(?!))" % HEADERS_MAX
)
"""The head of an order as nearly every client sends it: Host, Content-Type, Authorization, Idempotency-Key and
Content-Length once each, and headers that nobody heeds. One match does what parse_head does, in a third of its time; a
head that does not match is read there, and what matches is a head that parse_head reads alike."""

# The fields that mean something to the hot path, as clients spell them; any other spelling is found in lower case.
HOST, LENGTH, ENCODING, CONNECTION, EXPECT, AUTHORIZATION, KEY, TYPE, ACCEPT, CODING, UPGRADE, SIGNATURE = range(12)
_NAMES = {
    b"host": HOST,
    b"content-length": LENGTH,
    b"transfer-encoding": ENCODING,
    b"connection": CONNECTION,
    b"expect": EXPECT,
    b"authorization": AUTHORIZATION,
    b"idempotency-key": KEY,
    b"content-type": TYPE,
    b"accept": ACCEPT,
    b"content-encoding": CODING,
    b"upgrade": UPGRADE,
    b"stripe-signature": SIGNATURE,
}
_FIELDS = _NAMES | {name.title(): field for name, field in _NAMES.items()}
_LISTS = frozenset(
    (CONNECTION, ACCEPT, UPGRADE, CODING, SIGNATURE)
)  # may be sent in several lines; a list joined by commas
# What a reader behind the hot path gets to see: framing is made anew, and no page heeds any other header.
_LENT = frozenset(
    (
        b"host",
        b"authorization",
        b"accept",
        b"accept-language",
        b"content-type",
        b"idempotency-key",
        b"if-none-match",
        b"last-event-id",
        b"origin",
        b"user-agent",
        b"webhook-id",  # with the next two: how carriers sign
        b"webhook-signature",
        b"webhook-timestamp",
        b"x-request-id",
    )
)


class Head:
    """A message's head. `length` is the body's, 0 where it has none; `chunked` bodies say their length as they come."""

    __slots__ = ("chunked", "close", "expects", "fields", "length", "lines", "method", "minor", "target")

    def __init__(self, method: bytes, target: bytes, minor: int, fields: dict[int, bytes], lines: list[bytes]) -> None:
        self.method, self.target, self.minor, self.fields, self.lines = method, target, minor, fields, lines
        self.length = 0
        self.chunked = self.close = self.expects = False


def parse_head(head: bytes, whole: bool = True) -> Head:
    """The head in *head*, its last CRLF CRLF left out. Raises Refused("malformed").

    With `whole` false *head* is only the lines that have come: they are checked, what may still come is not missed.
    """
    if head.translate(None, _LEGAL):
        raise Refused("malformed", "The head holds a control character.")
    lines = head.split(b"\r\n")
    count = len(lines) - 1
    if head.count(b"\n") != count or head.count(b"\r") != count:
        raise Refused("malformed", "A line of the head ends without CR LF.")
    if count > HEADERS_MAX:
        raise Refused("headers-too-large", f"A request has at most {HEADERS_MAX} header lines.")
    if lines[0] == b"POST /v1/orders HTTP/1.1":
        method, target, minor = b"POST", b"/v1/orders", 1
    else:
        method, target, minor = _request_line(lines[0])
    fields = _fields(lines)
    parsed = Head(method, target, minor, fields, lines)
    if whole:
        if minor and HOST not in fields:
            raise Refused("malformed", "An HTTP/1.1 request has one Host header.")
        _frame(parsed)
    return parsed


def _fields(lines: list[bytes]) -> dict[int, bytes]:
    """The known fields of the header lines, all of which must be well-formed."""
    fields: dict[int, bytes] = {}
    for position in range(1, len(lines)):
        name, colon, value = lines[position].partition(b":")
        field = _FIELDS.get(name)
        if field is None:
            if not colon or not name or name.translate(None, _TOKEN):
                raise Refused("malformed", "A header line is not a name, a colon and a value.")
            field = _NAMES.get(name.lower())
            if field is None:
                continue
        elif not colon:
            raise Refused("malformed", "A header line is not a name, a colon and a value.")
        value = value.strip(b" \t")
        if field in fields:
            if field not in _LISTS:
                raise Refused("malformed", f"The header {name.decode('ascii')} is there twice.")
            value = fields[field] + b"," + value
        elif field == HOST and _AUTHORITY.fullmatch(value) is None:
            raise Refused("malformed", "The Host header is no host.")
        fields[field] = value
    return fields


def _request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Method, target in origin form (or `*`, or CONNECT's authority) and minor version."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Refused("malformed", "The request line is not a method, a target and HTTP/1.0 or HTTP/1.1.")
    method, target, minor = match[1], match[2], int(match[3])
    if target.startswith(b"/") and b"#" not in target:
        return method, target, minor
    if (method == b"OPTIONS" and target == b"*") or (method == b"CONNECT" and _AUTHORITY.fullmatch(target)):
        return method, target, minor
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or b"#" in target or _AUTHORITY.fullmatch(absolute[1].rpartition(b"@")[2]) is None:
        raise Refused("malformed", "The request target is neither a path nor an http address.")
    path = absolute[2] or b"/"
    return method, path if path.startswith(b"/") else b"/" + path, minor


def _frame(head: Head) -> None:
    """Sets where the body ends and whether the connection goes on."""
    fields = head.fields
    length = fields.get(LENGTH)
    if length is not None:
        if _LENGTH.fullmatch(length) is None:
            raise Refused("malformed", "Content-Length is not a number.")
        head.length = int(length)
    if ENCODING in fields:
        if length is not None:
            raise Refused("malformed", "Content-Length and Transfer-Encoding exclude each other.")
        if not head.minor or fields[ENCODING].lower() != b"chunked":
            raise Refused("malformed", "The only Transfer-Encoding is chunked, since HTTP/1.1.")
        head.chunked = True
    if EXPECT in fields:
        if fields[EXPECT].lower() != b"100-continue":
            raise Refused("malformed", "The only expectation that can be met is 100-continue.")
        head.expects = bool(head.minor)
    if CONNECTION in fields:
        options = {option.strip(b" \t").lower() for option in fields[CONNECTION].split(b",")}
        head.close = b"close" in options or (not head.minor and b"keep-alive" not in options)
    else:
        head.close = not head.minor


def check_part(part: bytes, lines: bool) -> None:
    """Refuses the beginning of a head as soon as it can't become a good one; `lines`: another line is whole."""
    if part.translate(None, _LEGAL):
        raise Refused("malformed", "The head holds a control character.")
    if _BARE.search(part):
        raise Refused("malformed", "A line of the head ends without CR LF.")
    whole, crlf, _ = part.rpartition(b"\r\n")
    if crlf and lines:
        parse_head(whole, whole=False)


def canonical(head: Head, body: bytes | bytearray, close: bool) -> bytes:
    """The message with one unambiguous framing, for a reader behind the hot path."""
    parts = [b"%b %b HTTP/1.%d" % (head.method, head.target, head.minor)]
    parts += (line for line in head.lines[1:] if line.partition(b":")[0].lower() in _LENT)
    if body or head.method not in (b"GET", b"HEAD", b"OPTIONS", b"DELETE"):
        parts.append(b"Content-Length: %d" % len(body))
    parts.append(b"Connection: close" if close else b"Connection: keep-alive")
    parts.append(b"\r\n")
    return b"\r\n".join(parts) + body


class ChunkedBody:
    """A chunked body as it comes in: feed() until it says done. Bounded by `limit` bytes of data."""

    __slots__ = ("_feed", "_limit", "_remaining", "_size_so_far", "_trailers", "body", "done", "keep")

    def __init__(self, limit: int) -> None:
        self.body = bytearray()
        self.keep = True  # False: nobody will read it; it is framed all the same
        self.done = False
        self._size_so_far = 0
        self._limit = limit
        self._remaining = 0
        self._trailers = 0
        self._feed = self._size

    def feed(self, data: bytes, position: int) -> int:
        """Reads on from *position*; answers how far it came. What it leaves is the beginning of a line."""
        while not self.done:
            reached = self._feed(data, position)
            if reached < 0:
                return position
            position = reached
        return position

    # Each state answers the position after what it read, or -1 if it needs more bytes than there are.

    def _size(self, data: bytes, position: int) -> int:
        end = data.find(b"\n", position) + 1
        if not end:
            part = data[position : position + CHUNK_LINE_MAX + 1]
            if len(part) > CHUNK_LINE_MAX or _CHUNK_LINE_SO_FAR.fullmatch(part) is None:
                raise Refused("malformed", "A chunk does not begin with its size.")
            return -1
        match = _CHUNK_LINE.fullmatch(data, position, end)
        if match is None or end - position > CHUNK_LINE_MAX:
            raise Refused("malformed", "A chunk does not begin with its size.")
        self._remaining = int(match[1], 16)
        if self._size_so_far + self._remaining > self._limit:
            raise Refused("too-large", f"A body has at most {self._limit} bytes.")
        self._feed = self._data if self._remaining else self._trailer
        return end

    def _data(self, data: bytes, position: int) -> int:
        part = data[position : position + self._remaining]
        if not part:
            return -1
        if self.keep:
            self.body += part
        self._size_so_far += len(part)
        self._remaining -= len(part)
        if not self._remaining:
            self._feed = self._data_end
        return position + len(part)

    def _data_end(self, data: bytes, position: int) -> int:
        end = data[position : position + 2]
        if end == b"\r\n":
            self._feed = self._size
            return position + 2
        if end not in (b"", b"\r"):
            raise Refused("malformed", "A chunk is not as long as it says.")
        return -1

    def _trailer(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position)
        line = data[position:end] if end >= 0 else data[position:]
        self._check_trailer(line, end >= 0)
        if end < 0:
            return -1
        self._trailers += len(line) + 2
        if self._trailers > TRAILERS_MAX:
            raise Refused("headers-too-large", "The trailers are too large.")
        self.done = not line
        return end + 2

    def _check_trailer(self, line: bytes, whole: bool) -> None:
        if line.translate(None, _LEGAL) or b"\n" in line or b"\r" in (line if whole else line[:-1]):
            raise Refused("malformed", "A trailer line is malformed.")
        if len(line) > TRAILERS_MAX:
            raise Refused("headers-too-large", "The trailers are too large.")
        if whole and line:
            name, colon, _ = line.partition(b":")
            if (
                not colon
                or not name
                or name.translate(None, _TOKEN)
                or _NAMES.get(name.lower()) in (LENGTH, ENCODING, HOST)
            ):
                raise Refused("malformed", "A trailer line is malformed.")
