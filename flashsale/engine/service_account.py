"""Under root: the account that front ends, worker, sandbox and Valkey run as, and its way to what they need.

It is another than PostgreSQL's, so that whoever takes a front end over can't read the ledger's files. Where there is
none, or it can't run the program, the parts run as root, and it is said why.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import flashsale
from flashsale import tether, unprivileged
from flashsale.embedded.server import fit_for_socket
from flashsale.settings import Settings

TRIED_WITHIN_S = 30.0
LOWEST_PORT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_TRIAL = "import flashsale.settings, uvloop, asyncpg"  # the interpreter, the package, a library that is no Python


class NoServiceAccount(Exception):
    """The parts run as root; one line that says why."""


def found(settings: Settings) -> tuple[int, int] | None:
    """(uid, gid) to run as; None: as ourselves, who are not root, or because the setting says so.

    Raises NoServiceAccount.
    """
    if os.geteuid() != 0 or settings.account == "root":
        return None
    if "account" not in settings.model_fields_set and (variable := _asks_who(settings)) is not None:
        raise NoServiceAccount(f"{variable} names a Unix socket, which may ask who connects: see FLASHSALE_ACCOUNT")
    if not fit_for_socket(settings.data_dir / "postgres" / "socket-of-a-server"):
        raise NoServiceAccount("the servers' sockets lie outside of a FLASHSALE_DATA_DIR with such a path")
    if settings.port < int(LOWEST_PORT.read_text()):
        raise NoServiceAccount(f"port {settings.port} is root's: choose one from {LOWEST_PORT.read_text().strip()} on")
    try:
        entry = unprivileged.account(settings.account)
        owner = entry.pw_uid, entry.pw_gid
        for place in (Path(sys.executable), Path(os.path.realpath(sys.executable)), Path(flashsale.__file__)):
            unprivileged.let_in(place.parent, *owner)
        unprivileged.let_in(settings.data_dir, *owner)
    except (unprivileged.UnprivilegedFault, OSError) as fault:
        raise NoServiceAccount(str(fault)) from fault
    try:
        tried = subprocess.run(  # noqa: S603 - argv is ours
            [sys.executable, "-P", "-c", _TRIAL],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"PATH": os.environ.get("PATH", "")},
            cwd="/",
            user=owner[0],
            group=owner[1],
            extra_groups=[],
            preexec_fn=tether.tie(tether.KILLED),
            timeout=TRIED_WITHIN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise NoServiceAccount(f"{entry.pw_name} can't run {sys.executable}: {fault}") from fault
    if tried.returncode != 0:
        said = tried.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NoServiceAccount(f"{entry.pw_name} can't run {sys.executable}: {said[-1] if said else tried.returncode}")
    return owner


def _asks_who(settings: Settings) -> str | None:
    """The variable of a server of one's own that is reached by a Unix socket: it may be shut to other accounts."""
    if settings.redis_url is not None and settings.redis_url.startswith("unix:"):
        return "FLASHSALE_REDIS_URL"
    if settings.database_url is not None:
        parts = urlsplit(settings.database_url)
        if not parts.hostname or "host=/" in unquote(parts.query):
            return "FLASHSALE_DATABASE_URL"
    return None
