"""How the house and a carrier know each other: whatever either sends is signed after Standard Webhooks.

https://www.standardwebhooks.com: headers webhook-id, webhook-timestamp and webhook-signature, HMAC-SHA-256 under a key
that both have and neither sends. An event is signed as its body; a request to the carrier as its method, its path and
its body, so that no other request can be made of it. A time more than five minutes off is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

from standardwebhooks import Webhook, WebhookVerificationError


class Signing:
    """Signs and verifies with one key (`whsec_` and base64). Raises ValueError for what is no key."""

    def __init__(self, secret: str) -> None:
        try:
            self._webhook = Webhook(secret)
        except Exception:  # the library has an error of its own for an empty key
            raise ValueError("a carriers' secret is whsec_ and base64") from None

    def headers(self, text: str, message_id: str | None = None) -> dict[str, str]:
        """The three headers that sign `text` now. `message_id`: the same in every try of the same message."""
        now = datetime.now(UTC)
        name = message_id or f"msg_{secrets.token_hex(12)}"
        return {
            "webhook-id": name,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(name, now, text),
        }

    def verify(self, headers: Mapping[str, str], text: bytes) -> None:
        """Returns if `headers` sign `text` at about this time. Raises ValueError, which says why not."""
        try:
            self._webhook.verify(text, dict(headers), json_parse=False)
        except WebhookVerificationError as fault:
            raise ValueError(f"its signature does not hold ({str(fault).lower()})") from None
        except ValueError:  # a signature that is none: not base64, not UTF-8, without its version
            raise ValueError("its signature is not one of Standard Webhooks") from None


def request_text(method: str, path: str, body: str) -> str:
    """What is signed of a request to a carrier."""
    return f"{method} {path}\n{body}"
