"""The bytes of the crowd's requests; built by hand, for a generator must cost less than what it measures."""

from __future__ import annotations

import json
from urllib.parse import urlsplit


class Requests:
    """Requests on one sale of one engine. `address` is where to send them."""

    def __init__(self, sale_id: str, host: str) -> None:
        """Raises ValueError for a host that is no http address."""
        url = urlsplit(host if "//" in host else f"//{host}")
        if url.scheme not in ("", "http") or not url.hostname:
            raise ValueError(f"--host is {host!r}: the crowd speaks plain http, as in http://127.0.0.1:8080")
        self.address = (url.hostname, url.port or 80)
        self._host = b"Host: %b\r\n" % url.netloc.encode()
        self._sale = sale_id

    def order(self, token: bytes, key: str, lines: list[tuple[str, int]]) -> bytes:
        body = json.dumps(
            {
                "sale": self._sale,
                "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines],
                "market": "SG",
            }
        ).encode()
        return (
            b"POST /v1/orders HTTP/1.1\r\n%bAuthorization: Bearer %b\r\nIdempotency-Key: %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        ) % (self._host, token, key.encode(), len(body), body)

    def page(self, path: str, token: bytes) -> bytes:
        return b"GET %b HTTP/1.1\r\n%bAuthorization: Bearer %b\r\n\r\n" % (path.encode(), self._host, token)
