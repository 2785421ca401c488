"""run.json as whoever comes next finds it: whole, or as if it were not there."""

import json
from pathlib import Path

import pytest

from flashsale import runfile

WHOLE: runfile.RunFile = {
    "boot": "b",
    "supervisor": {"pid": 1, "started": 2},
    "front": [{"pid": 3, "started": 4, "port": 8080}],
    "worker": [{"pid": 5, "started": 6, "name": "worker"}],
    "valkey": {"pid": None, "started": None, "address": "redis://h"},
    "postgres": {"pid": 7, "started": 8, "address": "postgresql://h"},
    "payments_sandbox": None,
}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    runfile.write(tmp_path, WHOLE)
    assert runfile.read(tmp_path) == WHOLE


@pytest.mark.parametrize("part", WHOLE)
@pytest.mark.parametrize("value", [None, 0, [], {}, "x", [None], [{}], {"pid": "x"}])
def test_a_damaged_part_makes_it_no_run_json(tmp_path: Path, part: str, value: object) -> None:
    damaged = {**WHOLE, part: value}
    (tmp_path / runfile.NAME).write_text(json.dumps(damaged))
    assert runfile.read(tmp_path) in (None, damaged)  # an empty list of fronts is none of the damages
    (tmp_path / runfile.NAME).write_text(json.dumps({name: WHOLE[name] for name in WHOLE if name != part}))  # type: ignore[literal-required]
    assert runfile.read(tmp_path) is None


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"[" * 100_000, b'{"front": [', b"null", b"[]", b'"x"'])
def test_a_damaged_file_is_no_run_json(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / runfile.NAME).write_bytes(damage)
    assert runfile.read(tmp_path) is None


def test_a_directory_of_its_name_is_no_run_json(tmp_path: Path) -> None:
    (tmp_path / runfile.NAME).mkdir()
    assert runfile.read(tmp_path) is None
