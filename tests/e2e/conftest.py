"""An engine that loses its patience sooner than by default, and what the end of the run says of absent corpora."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import corpora
from tests.conftest import Engine

READ_TIMEOUT_S = 4
IDLE_TIMEOUT_S = 60 if corpora.FULL else 12
WRITE_TIMEOUT_S = 40 if corpora.FULL else 8
DROP_S = 2  # the default


@pytest.fixture(scope="session")
def impatient_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One running engine with short time-outs, shared by the tests of hostile clients."""
    engine = Engine(
        tmp_path_factory.mktemp("impatient") / "engine",
        FLASHSALE_READ_TIMEOUT_S=str(READ_TIMEOUT_S),
        FLASHSALE_IDLE_TIMEOUT_S=str(IDLE_TIMEOUT_S),
        FLASHSALE_WRITE_TIMEOUT_S=str(WRITE_TIMEOUT_S),
    ).start()
    yield engine
    engine.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if corpora.absent():
        terminalreporter.write_line(corpora.absent())
