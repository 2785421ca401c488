"""The payments sandbox as a part of `flashsale up`: its port, its keys, and what the other parts are told of it.

To them it is a payment provider like any other: an address, a key and a secret in the environment. Port and keys stay
the same over restarts, since pages to pay at are remembered by shoppers and in the ledger.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TextIO

from flashsale import runfile
from flashsale.engine.parts import OwnPart, living
from flashsale.partners.payments.sandbox.server import Keys, keys_of
from flashsale.settings import ENV_PREFIX, SANDBOX_PAGES, Settings, reachable

HOST = "127.0.0.1"


class PaymentsSandbox(OwnPart):
    """`flashsale sandbox payments`, kept running."""

    def __init__(self, settings: Settings, env: dict[str, str], output: TextIO | None) -> None:
        """`env`: of the engine's parts; its payment settings are this part's to fill in (`prepare`)."""
        super().__init__("payments sandbox", [], env, output)
        self._settings = settings
        self.directory = settings.data_dir / "payments"
        self._keys: Keys | None = None
        self._port = 0

    def prepare(self) -> dict[str, str]:
        """Chooses port and keys; returns the settings by which the other parts know the provider."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key, secret = self._settings.payments_api_key, self._settings.payments_webhook_secret
        self._keys = keys_of(
            self.directory,
            key.get_secret_value() if key is not None else None,
            secret.get_secret_value() if secret is not None else None,
        )
        self._port = _port(self.directory / "port")
        webhooks = f"http://{reachable(self._settings.host)}:{self._settings.port}/v1/webhooks/payments"
        options = {
            "--port": str(self._port),
            "--data-dir": str(self.directory),
            "--webhook-url": webhooks,
            "--pages-url": self._settings.public_address + SANDBOX_PAGES,
        }
        self._command = ["sandbox", "payments", *(word for option in options.items() for word in option)]
        return {
            f"{ENV_PREFIX}PAYMENTS_URL": self.address,
            f"{ENV_PREFIX}PAYMENTS_SANDBOX_URL": self.address,
            f"{ENV_PREFIX}PAYMENTS_API_KEY": self._keys.api_key,
            f"{ENV_PREFIX}PAYMENTS_WEBHOOK_SECRET": self._keys.webhook_secret,
        }

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self._port}"

    def record(self) -> runfile.PaymentsSandbox | None:
        """What run.json says of it; None before it was prepared."""
        if self._keys is None:
            return None
        pid, started = next(iter(living(self)), (None, None))
        return {
            "pid": pid,
            "started": started,
            "address": self.address,
            "api_key": self._keys.api_key,
            "webhook_secret": self._keys.webhook_secret,
        }


def _port(place: Path) -> int:
    """The port of the last time if it is free, else another; remembered in `place`."""
    with contextlib.suppress(OSError, ValueError):
        port = int(place.read_text())
        if _free(port):
            return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    place.write_text(str(port))
    return port


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False
