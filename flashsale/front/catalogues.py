"""The catalogue as this process knows it, loaded from Valkey alone.

Whoever reads state from Valkey learns the version in force in the same round trip and passes it here: a sale command is
obeyed by the first answer after it. Old versions are kept as long as they are asked for: a replay is priced at its own.
"""

import asyncio

import redis.asyncio

from flashsale.reservation import commands
from flashsale.sale.catalogue import Catalogue

VERSIONS_KEPT = 16  # decoded versions beside the current one; a version of 10,000 offers takes about 10 MB


class Catalogues:
    """The version in force (`current`; version 0 until the first load) and those that replays ask for."""

    def __init__(self, valkey: "redis.asyncio.Redis") -> None:
        self._valkey = valkey
        self._loading = asyncio.Lock()
        self._older: dict[int, Catalogue] = {}
        self.current = Catalogue(0, ())

    async def refresh(self) -> Catalogue:
        """Loads the version in force from Valkey and returns it. Raises redis-py's errors."""
        async with self._loading:
            self._replace(await commands.load_catalogue(self._valkey))
            return self.current

    async def at_least(self, version: int) -> Catalogue:
        """The current catalogue, loaded again first if Valkey has shown another `version` to be in force."""
        if self.current.version == version:
            return self.current
        async with self._loading:
            if self.current.version != version:  # another page may have loaded it meanwhile
                self._replace(await commands.load_catalogue(self._valkey))
            return self.current

    async def version(self, number: int) -> Catalogue | None:
        """The catalogue of that version; None if Valkey does not keep it. Raises redis-py's errors."""
        if number == self.current.version:
            return self.current
        known = self._older.pop(number, None)
        if known is None:
            known = await commands.load_catalogue(self._valkey, number)
        if known is not None:
            self._keep(known)
        return known

    def _replace(self, loaded: Catalogue | None) -> None:
        if loaded is None or loaded.version == self.current.version:
            return
        if self.current.version:
            self._keep(self.current)
        self.current = loaded

    def _keep(self, catalogue: Catalogue) -> None:
        """Keeps the versions last asked for: a dict remembers the order."""
        self._older[catalogue.version] = catalogue
        while len(self._older) > VERSIONS_KEPT:
            del self._older[next(iter(self._older))]
