"""Pages that many ask for at once are made once: who asks while one is being made shares the next, and waits for it.

Never one that was begun before somebody asked: what a page says was so after its question, as if it were asked alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

Make = Callable[[web.Request], Awaitable[web.Response]]


@dataclass(slots=True)
class _Turn:
    """Who makes a page now, and who will make the next for all that have asked meanwhile."""

    now: asyncio.Task[web.Response]
    next: asyncio.Task[web.Response] | None = None


class Shared:
    """The pages under way of one process; it remembers none that is done."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, ...], _Turn] = {}

    async def answer(self, request: web.Request, make: Make) -> web.Response:
        """The page, made by `make` for this request or for another that is just like it. Raises what `make` raises."""
        key = (request.path_qs, *(",".join(request.headers.getall(name, ())) for name in ("Accept", "Accept-Language")))
        turn = self._turns.get(key)
        if turn is None:
            made = self._begin(key, request, make)
            self._turns[key] = _Turn(made)
        elif turn.next is None:
            made = turn.next = self._after(turn.now, key, request, make)
        else:
            made = turn.next
        response = await asyncio.shield(made)
        return web.Response(status=response.status, body=response.body, headers=response.headers.copy())

    def _begin(self, key: tuple[str, ...], request: web.Request, make: Make) -> asyncio.Task[web.Response]:
        async def run() -> web.Response:
            try:
                return await make(request)
            finally:
                self._done(key)

        return _seen(asyncio.create_task(run()))

    def _after(
        self, earlier: asyncio.Task[web.Response], key: tuple[str, ...], request: web.Request, make: Make
    ) -> asyncio.Task[web.Response]:
        async def run() -> web.Response:
            await asyncio.wait({earlier})
            try:
                return await make(request)
            finally:
                self._done(key)

        return _seen(asyncio.create_task(run()))

    def _done(self, key: tuple[str, ...]) -> None:
        turn = self._turns[key]
        if turn.next is None:
            del self._turns[key]
        else:
            turn.now, turn.next = turn.next, None


def _seen(task: asyncio.Task[web.Response]) -> asyncio.Task[web.Response]:
    """Its failure is each waiter's to tell; that nobody waits any more is none."""
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


SHARED = web.AppKey("shared", Shared)
