"""What an engine has for itself before anything starts: its data directory, its port, and no leftovers of the last."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from pathlib import Path

import structlog

from flashsale import runfile, tether
from flashsale.engine.faults import SupervisorFault
from flashsale.settings import Settings

log = structlog.get_logger("flashsale.supervisor")

LEFTOVER_WITHIN_S = 3.0


def claim(settings: Settings) -> list[object]:
    """The data directory and the port are ours alone from here on, and nothing of an earlier engine runs.

    Hold on to the answer for as long as the engine lives. Raises SupervisorFault.
    """
    data_dir = settings.data_dir
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Held open for life: the lock goes with the process, however it ends.
        lock = (data_dir / "lock").open("a")
    except OSError as fault:
        raise SupervisorFault(f"the data directory {data_dir} can't be used: {fault.strerror}") from fault
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        lock.close()
        raise SupervisorFault(
            f"another engine runs on {data_dir}: stop it, or set FLASHSALE_DATA_DIR to another directory"
        ) from fault
    _end_previous(data_dir)
    held: list[object] = [lock, _claim_port(settings.host, settings.port, "PORT")]
    if settings.management_port is not None:
        if settings.management_port == settings.port:
            raise SupervisorFault("FLASHSALE_MANAGEMENT_PORT is FLASHSALE_PORT: leave it unset, or set another port")
        held.append(_claim_port(settings.management_host, settings.management_port, "MANAGEMENT_PORT"))
    return held


def _end_previous(data_dir: Path) -> None:
    """End what the last engine's run.json still names: pid and start time must both be those."""
    old = runfile.read(data_dir)
    if old is None and os.path.lexists(data_dir / runfile.NAME):
        log.warning("previous.illegible", file=str(data_dir / runfile.NAME), what="ignored, and written anew")
    if old is None or old["boot"] != tether.boot_id():
        return
    named: list[tuple[int | None, int | None, signal.Signals]] = [
        *((part["pid"], part["started"], signal.SIGTERM) for part in (*old["front"], *old["worker"])),
        *([(sandbox["pid"], sandbox["started"], signal.SIGTERM)] if (sandbox := old["payments_sandbox"]) else []),
        (old["valkey"]["pid"], old["valkey"]["started"], signal.SIGTERM),
        (old["postgres"]["pid"], old["postgres"]["started"], signal.SIGQUIT),
    ]
    for pid, started, sig in named:
        if pid is None or started is None or tether.start_ticks(pid) != started:
            continue
        log.warning("previous.ended", pid=pid)
        try:
            tether.end(pid, started, sig, LEFTOVER_WITHIN_S)
        except PermissionError as fault:
            raise SupervisorFault(
                f"process {pid} of an earlier engine on {data_dir} still runs as another user: stop it first"
            ) from fault


def _claim_port(host: str, port: int, setting: str) -> socket.socket:
    """Prove that the port is free and keep other engines off it; hold on to the answer.

    The front ends share the port by SO_REUSEPORT, so they would join anybody's: one bind without it tells. Between that
    bind and theirs a name in the kernel's abstract namespace, which dies with us, keeps a second engine out.
    """
    elsewhere = f"or set FLASHSALE_{setting} to another port"
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0flashsale-port-{port}")
    except OSError as fault:
        claim.close()
        raise SupervisorFault(f"another engine runs on port {port}: stop it, {elsewhere}") from fault
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as fault:
        raise SupervisorFault(f"the host {host} can't be listened on: {fault.strerror}; see FLASHSALE_HOST") from fault
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last engine may linger
            try:
                probe.bind(address)
                probe.listen(1)
            except OSError as fault:
                if fault.errno == errno.EADDRINUSE:
                    raise SupervisorFault(f"port {port} is in use: stop the other program, {elsewhere}") from fault
                raise SupervisorFault(f"{host}:{port} can't be listened on: {fault.strerror}") from fault
    return claim
