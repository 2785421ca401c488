"""The payments sandbox as a process of its own, for tests: started, killed and started again on the same directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import stripe

from tests.conftest import FLASHSALE, free_port

API_KEY = "sk_test_51sandbox"
WEBHOOK_SECRET = "whsec_of_the_sandbox_and_long_enough"
READY_WITHIN_S = 15


class Sandbox:
    """`flashsale sandbox payments`. Keys travel in its environment, as `up` gives them."""

    def __init__(self, directory: Path, webhook_url: str | None = None) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.webhook_url = webhook_url
        self.process: subprocess.Popen[str] | None = None
        self.told: dict[str, Any] = {}

    def start(self) -> Sandbox:
        command = [FLASHSALE, "sandbox", "payments", "--port", str(self.port), "--data-dir", self.directory, "--json"]
        if self.webhook_url is not None:
            command += ["--webhook-url", self.webhook_url]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE_")}
        environment |= {
            "FLASHSALE_PAYMENTS_API_KEY": API_KEY,
            "FLASHSALE_PAYMENTS_WEBHOOK_SECRET": WEBHOOK_SECRET,
        }
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # it is printed when it serves; empty where it ended
        assert line, f"the sandbox ended with {self.process.wait()}"
        self.told = json.loads(line)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """SIGTERM; returns how long it took to end."""
        if self.process is None or self.process.poll() is not None:
            return 0.0
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0
        return time.monotonic() - began

    def client(self, key: str = API_KEY) -> stripe.StripeClient:
        """Stripe's own."""
        return stripe.StripeClient(key, base_addresses={"api": self.url}, max_network_retries=0)

    def post(self, path: str, body: Any = None) -> Any:
        """To one of its controls; raises urllib.error.HTTPError."""
        data = json.dumps({} if body is None else body).encode()
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, head)  # noqa: S310 - ours
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - ours
            return json.load(answer)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path) as answer:  # noqa: S310 - ours
            return json.load(answer)

    def faults(self, **faults: float) -> None:
        self.post("/sandbox/faults", faults)

    def choose(self, url: str, method: str, action: str = "pay") -> tuple[int, str | None, str]:
        """What a shopper does on a pay page: (status, where it leads, the page)."""
        data = urllib.parse.urlencode({"method": method, "action": action}).encode()
        try:
            request = urllib.request.Request(url, data)  # noqa: S310 - ours
            with urllib.request.build_opener(_Stay).open(request) as answer:
                return answer.status, None, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.headers.get("Location"), answer.read().decode()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Receiver:
    """Where webhooks arrive: keeps (signature, body) of each, and takes it unless told otherwise."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((self.headers["Stripe-Signature"], body))
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/webhooks"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in list(self.received)]

    def types(self) -> list[str]:
        return [event["type"] for event in self.events()]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
