"""What the integration tests share beside the servers: a front's pages over an empty Valkey and a migrated ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flashsale.embedded import ValkeyServer
from tests.integration.house import House, open_house


@pytest.fixture
async def house(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[House]:
    async with open_house(valkey_memory.url, ledger) as house:
        yield house
