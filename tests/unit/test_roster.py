"""What an engine's parts are made to hold together, before any of them is started."""

from pathlib import Path

import pytest

from flashsale.engine.roster import Roster
from flashsale.settings import load


@pytest.mark.parametrize("processes", [1, 20, 21, 256])
def test_the_servers_have_room_for_every_front_end_and_for_the_rest(tmp_path: Path, processes: int) -> None:
    settings = load(data_dir=tmp_path, processes=processes)
    roster = Roster(settings, None)
    assert roster.postgres is not None
    assert roster.valkey is not None
    assert roster.postgres.connections_max >= processes * settings.ledger_connections + 50
    assert roster.valkey.clients_max >= processes * settings.valkey_connections + 500


def test_what_stands_in_for_the_outside_world_is_said(tmp_path: Path) -> None:
    key = "whsec_" + "A" * 43 + "="
    real = {"payments_url": "https://api.stripe.com", "identities_url": "https://people.example"}
    assert list(Roster(load(data_dir=tmp_path, **real), None).stand_ins()) == []
    said = list(
        Roster(load(data_dir=tmp_path, carriers_url="http://127.0.0.1:9/x", carriers_secret=key), None).stand_ins()
    )
    assert [line.split(" ")[0] for line in said] == ["payments", "carriers"]
