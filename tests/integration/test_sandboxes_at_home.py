"""The sandboxes answer this machine alone: no page of another site moves a parcel, sets a fault or reads a payment."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

SECRETS = {
    "FLASHSALE_CARRIERS_SECRET": "whsec_" + "Y2FycmllcnMtb2YtYS10ZXN0LW9mLXRoaXJ0eS10d28=",
    "FLASHSALE_IDENTITIES_API_KEY": "identities-of-a-test-with-32-bytes",
}
KINDS = ("payments", "carriers", "channel", "identities")


@pytest.fixture(scope="module", params=KINDS)
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a sandbox of each kind serves, begun as a user begins it."""
    kind, directory = request.param, tmp_path_factory.mktemp("sandbox")
    with contextlib.ExitStack() as held:
        process = held.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "flashsale", "sandbox", kind, "--json"],
                env={**os.environ, **SECRETS, "FLASHSALE_DATA_DIR": str(directory)},
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        held.callback(process.terminate)
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"]


def asked(address: str, method: str, path: str, host: str, **headers: str) -> int:
    """The status of a request that came by the name `host`."""
    parts = urlsplit(address)
    with contextlib.closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)) as connection:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host.replace("PORT", str(parts.port)))
        connection.putheader("Content-Length", "2" if method == "POST" else "0")
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(b"{}" if method == "POST" else None)
        return connection.getresponse().status


@pytest.mark.parametrize("host", ["127.0.0.1:PORT", "localhost:PORT", "LOCALHOST", "[::1]:PORT"])
def test_a_sandbox_answers_to_this_machines_names(address: str, host: str) -> None:
    assert asked(address, "POST", "/sandbox/faults", host) == 200
    assert asked(address, "POST", "/sandbox/faults", host, Sec_Fetch_Site="same-origin") == 200


@pytest.mark.parametrize("host", ["evil.example:PORT", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_was_pointed_at_this_machine_reads_and_sets_nothing(address: str, method: str, host: str) -> None:
    # aiohttp itself refuses what is no host at all.
    assert asked(address, method, "/sandbox/faults", host) in (400, 421)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_sets_no_faults(address: str, site: str) -> None:
    assert asked(address, "POST", "/sandbox/faults", "127.0.0.1:PORT", Sec_Fetch_Site=site) == 403
