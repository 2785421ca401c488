"""Settings, the kept secret and run.json: what every command starts from."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashsale import runfile, secret, settings
from flashsale.settings import Settings, SettingsFault, misspelt


@pytest.fixture(autouse=True)
def _bare_environment() -> Iterator[None]:
    """No FLASHSALE_… of the machine's reaches a test, and none of a test's stays."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("FLASHSALE_")}
    yield
    for name in [name for name in os.environ if name.startswith("FLASHSALE_")]:
        del os.environ[name]
    os.environ.update(kept)


def loaded(**environment: str) -> Settings:
    os.environ.update({f"FLASHSALE_{name}": value for name, value in environment.items()})
    return settings.load()


def test_the_contracts_defaults() -> None:
    chosen = loaded()
    assert (chosen.port, chosen.durability, chosen.partitions) == (8080, "fsync", 1)
    assert chosen.data_dir == Path.cwd() / ".flashsale"
    assert chosen.answer_within_ms == 5000
    assert chosen.backlog_max_bytes >= 256 * 2**20
    assert chosen.backlog_max_bytes < chosen.maxmemory_mb * 2**20


def test_every_setting_says_its_unit_and_meaning() -> None:
    for knob in loaded().knobs():
        assert knob.unit, knob.name
        assert len(knob.meaning) > 15, knob.name


def test_secrets_are_masked() -> None:
    shown = {
        knob.name: str(knob.value)
        for knob in loaded(SECRET="swordfish" * 4, DATABASE_URL="postgresql://ann:hunter2@db/sale").knobs()
    }
    assert shown["secret"] == "(set)"
    assert shown["database_url"] == "postgresql://ann:***@db/sale"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "eighty", "valid integer"),
        ("DURABILITY", "replicated", "not built yet"),
        ("DURABILITY", "none", "memory"),
        ("PARTITIONS", "2", "not built yet"),
        ("BACKLOG_MAX_BYTES", str(2**40), "MAXMEMORY_MB"),
        ("SECRET", "two\nlines", "line breaks"),
        ("SECRET", "x" * 31, "at least 32 bytes, this one 31"),
        ("SECRET", "x" + " " * 40, "at least 32 bytes, this one 1"),
        ("PAYMENTS_WEBHOOK_SECRET", "whsec_short", "at least 32 bytes"),
        ("CARRIERS_SECRET", "whsec_" + "QUJD" * 10, "at least 32 bytes"),
        ("REDIS_URL", "rediss://valkey:6379/0", "TLS"),
        ("REDIS_URL", "http://valkey", "redis://"),
        ("DATABASE_URL", "mysql://db/sale", "postgresql://"),
    ],
)
def test_a_fault_is_one_line_that_names_the_variable(name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsFault) as refused:
        loaded(**{name: value})
    assert f"FLASHSALE_{name}" in str(refused.value)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    if name == "SECRET":
        assert value not in str(refused.value)


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    chosen = loaded(DATA_DIR=str(tmp_path))
    with pytest.raises(secret.NoSecret, match="no secret"):
        secret.find(chosen)
    made = secret.find_or_make(chosen)
    assert secret.find_or_make(chosen) == secret.find(chosen) == made
    assert len(made) >= 32
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


GIVEN = "gegeben-für-光棍节-und-lang-genug"


def test_a_given_secret_is_kept_for_later(tmp_path: Path) -> None:
    assert secret.find_or_make(loaded(DATA_DIR=str(tmp_path), SECRET=GIVEN)) == GIVEN
    assert secret.find(loaded(SECRET="")) == GIVEN
    assert secret.find_or_make(loaded(SECRET="another" * 5)) == "another" * 5
    assert (tmp_path / "secret").read_text(encoding="utf-8") == "another" * 5


def test_addresses_come_from_the_environment_then_from_the_running_engine(tmp_path: Path) -> None:
    with pytest.raises(runfile.NoEngine, match="no engine has been started"):
        runfile.addresses(loaded(DATA_DIR=str(tmp_path)))
    server: runfile.Server = {"pid": 1, "started": 2, "address": "unix:///a"}
    content: runfile.RunFile = {
        "boot": "b",
        "supervisor": {"pid": 3, "started": 4},
        "front": [{"pid": 5, "started": 6, "port": 7}],
        "worker": [{"pid": 8, "started": 9, "name": "worker"}],
        "valkey": server,
        "postgres": {**server, "address": "postgresql:///b"},
        "payments_sandbox": {**server, "api_key": "sk_test_1", "webhook_secret": "whsec_1"},
    }
    runfile.write(tmp_path, content)
    assert runfile.read(tmp_path) == content
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o600
    assert runfile.addresses(loaded()) == ("unix:///a", "postgresql:///b")
    assert runfile.addresses(loaded(REDIS_URL="redis://own")) == ("redis://own", "postgresql:///b")


def test_a_torn_run_file_is_no_run_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"front": [')
    assert runfile.read(tmp_path) is None
    (tmp_path / "run.json").write_text("[]")
    assert runfile.read(tmp_path) is None


def test_a_misspelt_variable_is_told_with_the_one_that_was_meant() -> None:
    told = misspelt({"FLASHSALE_PROT": "80", "FLASHSALE_PORT": "80", "FLASHSALE_X": "", "PATH": "/bin"})
    assert list(told) == ["FLASHSALE_PROT", "FLASHSALE_X"]
    assert "did you mean FLASHSALE_PORT?" in told["FLASHSALE_PROT"]
    assert "`flashsale config`" in told["FLASHSALE_X"]


def test_a_secret_that_was_kept_and_is_too_short_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("kept-by-an-earlier-release\n")
    with pytest.raises(secret.NoSecret, match="at least 32 bytes, this one 26"):
        secret.find(loaded(DATA_DIR=str(tmp_path)))


def test_a_payment_leads_back_to_the_shop_and_nowhere_else() -> None:
    chosen = loaded(
        SHOP_URL="https://shop.example/back",
        PUBLIC_URL="http://pay.example:8080",
        RETURN_ORIGINS='["https://m.example"]',
    )
    for good in (
        "https://shop.example/x?y=1",
        "https://shop.example:443/",
        "http://pay.example:8080/",
        "https://m.example/",
    ):
        assert chosen.may_return_to(good), good
    for bad in (
        "http://shop.example/",
        "https://shop.example.evil/",
        "https://evil@m.example/",
        "javascript:1",
        "//m.example",
    ):
        assert not chosen.may_return_to(bad), bad
    with pytest.raises(SettingsFault, match="FLASHSALE_RETURN_ORIGINS"):
        loaded(RETURN_ORIGINS='["https://m.example/path"]')
