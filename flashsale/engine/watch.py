"""Which parts live and yet do nothing: stopped, spinning or waiting for ever. Such a part is killed; who keeps it
running starts it again.

Our own parts show a sign of life each second (life_sign.py): a front end's listener shares its port with the others',
so it can't be asked by number. Valkey and PostgreSQL are asked: any byte of an answer will do, one that says "loading"
too. Silence is counted from look to look, so that the time that a laptop slept, or we were stopped, counts for nothing.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from flashsale import life_sign
from flashsale.embedded.server import Server, ServerFault
from flashsale.engine.parts import OwnPart, Part, living, name_of, pid_of

log = structlog.get_logger("flashsale.supervisor")

LOOK_EVERY_S = 1.0
LOOK_LATE_S = 2.5  # a look that comes later than this was held up by something that held up the parts, too
ASK_WITHIN_S = 1.0  # a server that is asked
BEGIN_WITHIN_S = 60.0  # a part's first sign: it imports half the house on a machine that has other things to do
DATAGRAM_BYTES = 4096
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: the kernel's word, whatever the sender says


@dataclass(slots=True)
class _Heard:
    """What is known of one process."""

    silent_s: float = 0.0
    begun: bool = False


@dataclass(slots=True)
class Watch:
    """Listens to our own parts and asks the servers. `silent_s`: by part, how long it may be silent (0: for ever)."""

    silent_s: Callable[[Part], float]
    _channel: socket.socket = field(default_factory=lambda: _channel(), init=False)
    _own: Sequence[OwnPart] = field(default=(), init=False)
    _heard: dict[int, _Heard] = field(default_factory=dict, init=False)
    _unanswered_s: dict[Server, float] = field(default_factory=dict, init=False)

    def environment(self, silent_s: float) -> dict[str, str]:
        """By which a part of our own knows whom to tell, and how often."""
        name = self._channel.getsockname()
        address = "@" + os.fsdecode(name[1:])
        return {
            life_sign.SOCKET_VARIABLE: address,
            life_sign.TIMEOUT_VARIABLE: str(int((silent_s or BEGIN_WITHIN_S) * 1e6)),
        }

    async def run(self, own: Sequence[OwnPart], serving: Callable[[], Sequence[Server]]) -> None:
        """Looks until cancelled. `serving`: the servers that were ready once and so must answer."""
        loop, self._own = asyncio.get_running_loop(), own
        loop.add_reader(self._channel, self._read)
        looked = loop.time()
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                passed_s, looked = loop.time() - looked, loop.time()
                if passed_s > LOOK_LATE_S:
                    passed_s = LOOK_EVERY_S
                self._look(passed_s)
                await self._ask(serving(), passed_s)
        finally:
            loop.remove_reader(self._channel)
            self._channel.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while True:
                word, ancillary, _, _ = self._channel.recvmsg(DATAGRAM_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
                for level, kind, data in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and life_sign.SIGN in word:
                        self._sign(_CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0])
                    elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        for handle in array.array("i", data[: len(data) - len(data) % 4]):
                            os.close(handle)  # a stranger's open files: not kept

    def begun(self, part: OwnPart) -> bool:
        """Whether its last process has ever shown a sign of life."""
        return part.process is not None and part.process.pid in self._heard and self._heard[part.process.pid].begun

    def _sign(self, pid: int) -> None:
        if any(pid == pid_of(part) for part in self._own):  # else a stranger's
            heard = self._heard.setdefault(pid, _Heard())
            heard.silent_s, heard.begun = 0.0, True

    def _look(self, passed_s: float) -> None:
        named = {pid_of(part): part for part in self._own}
        self._heard = {pid: heard for pid, heard in self._heard.items() if pid in named}
        for part in self._own:
            for pid, _ in living(part):
                self._count(part, self._heard.setdefault(pid, _Heard()), passed_s)

    def _count(self, part: OwnPart, heard: _Heard, passed_s: float) -> None:
        heard.silent_s += passed_s
        limit_s = self.silent_s(part)
        if limit_s and heard.silent_s > (limit_s if heard.begun else max(limit_s, BEGIN_WITHIN_S)):
            log.error("part.hung", name=name_of(part), pid=pid_of(part), silent_s=round(heard.silent_s))
            if part.process is not None:
                part.process.kill()

    async def _ask(self, servers: Sequence[Server], passed_s: float) -> None:
        answers = await asyncio.gather(*(_answers(server) for server in servers))
        self._unanswered_s = {
            server: 0.0 if answered else self._unanswered_s.get(server, 0.0) + passed_s
            for server, answered in zip(servers, answers, strict=True)
        }
        for server, silent_s in self._unanswered_s.items():
            if (limit_s := self.silent_s(server)) and silent_s > limit_s:
                log.error("part.hung", name=name_of(server), pid=server.pid, silent_s=round(silent_s))
                server.kill_hung()
                self._unanswered_s[server] = 0.0


async def _answers(server: Server) -> bool:
    """Whether it sends anything back, or we can't tell (no descriptor left, say)."""
    try:
        async with asyncio.timeout(ASK_WITHIN_S):
            reader, writer = await asyncio.open_unix_connection(str(server.socket_path))
            try:
                writer.write(server.question)
                await reader.read(1)
            finally:
                writer.close()
    except (TimeoutError, BlockingIOError, ConnectionError):
        return False
    except (OSError, ServerFault):
        return True
    return True


def _channel() -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    channel.bind("")  # the kernel chooses a name in its abstract namespace: no file that could be in the way
    return channel
