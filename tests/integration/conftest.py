"""What the integration tests share beside the servers: a front's pages over an empty Valkey and a migrated ledger, and
a shop whose orders are paid at the sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from flashsale.embedded import ValkeyServer
from tests.integration.house import House, open_house
from tests.integration.paying_house import Shop, open_shop
from tests.payments_sandbox import Receiver, Sandbox

if TYPE_CHECKING:
    from tests.integration.till import Till


@pytest.fixture
async def house(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[House]:
    async with open_house(valkey_memory.url, ledger) as house:
        yield house


@pytest.fixture(scope="module")
def till_receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def till_sandbox(tmp_path_factory: pytest.TempPathFactory, till_receiver: Receiver) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path_factory.mktemp("sandbox"), till_receiver.url).start()
    yield made
    made.stop()


@pytest.fixture
async def till(
    valkey_memory: ValkeyServer, ledger: str, till_sandbox: Sandbox, till_receiver: Receiver
) -> AsyncIterator[Till]:
    from tests.integration.till import Till  # here: it knows half of the engine, and most tests need none of that

    till_receiver.received.clear()
    till_sandbox.faults()
    async with Till(valkey_memory.url, ledger, till_sandbox, till_receiver) as till:
        yield till


@pytest.fixture(scope="session")
def _sandbox_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path_factory.mktemp("sandbox")).start()
    yield made
    made.stop()


@pytest.fixture
def payments_sandbox(_sandbox_session: Sandbox) -> Iterator[Sandbox]:
    """The sandbox that the session shares, without faults."""
    yield _sandbox_session
    _sandbox_session.faults()


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str, payments_sandbox: Sandbox) -> AsyncIterator[Shop]:
    async with open_shop(valkey_memory.url, ledger, payments_sandbox) as shop:
        yield shop
