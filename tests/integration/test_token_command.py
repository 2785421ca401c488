"""`flashsale token` as a shell runs it: tokens on stdout and nothing else, many of them fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest

from flashsale.front.auth import ROLES

FLASHSALE = Path(sys.executable).with_name("flashsale")
SECRET = "a secret with ünïcode, 32 bytes or more"


def token(tmp_path: Path, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE_")}
    done = subprocess.run(
        [str(FLASHSALE), "token", *arguments],
        env=clean | {"FLASHSALE_DATA_DIR": str(tmp_path)} | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done
    return done


def claims_of(text: str, secret: str = SECRET) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(
        text, secret.encode(), algorithms=["HS256"], audience="flashsale", issuer="flashsale"
    )
    return claims


def test_help_has_an_example(tmp_path: Path) -> None:
    for arguments in (("--help",), *((role, "--help") for role in ROLES)):
        assert "Example: " in token(tmp_path, *arguments).stdout


def test_one_token_and_nothing_else(tmp_path: Path) -> None:
    began = int(time.time())
    done = token(tmp_path, "shopper", "ada", FLASHSALE_SECRET=SECRET)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    claims = claims_of(done.stdout.strip())
    assert (claims["sub"], claims["role"]) == ("ada", "shopper")
    assert 0 <= int(str(claims["exp"])) - began - 86_400 < 30
    assert claims_of(token(tmp_path, "admin", FLASHSALE_SECRET=SECRET).stdout.strip())["role"] == "admin"


@pytest.mark.parametrize("role", ["shopper", "agent", "channel", "merchant"])
def test_each_role_has_a_token_of_a_name_of_its_own(tmp_path: Path, role: str) -> None:
    claims = claims_of(token(tmp_path, role, "li-wei", "--ttl", "7d", FLASHSALE_SECRET=SECRET).stdout.strip())
    assert (claims["sub"], claims["role"]) == ("li-wei", role)


def test_the_kept_secret_serves_where_none_is_given(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    assert claims_of(token(tmp_path, "shopper", "ada").stdout.strip())["sub"] == "ada"


def test_without_a_secret_one_line_says_what_to_do(tmp_path: Path) -> None:
    done = token(tmp_path, "admin", status=1)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "FLASHSALE_SECRET" in done.stderr


@pytest.mark.parametrize(("ttl", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800)])
def test_a_lifetime_has_a_unit(tmp_path: Path, ttl: str, seconds: int) -> None:
    claims = claims_of(token(tmp_path, "shopper", "ada", "--ttl", ttl, FLASHSALE_SECRET=SECRET).stdout.strip())
    assert int(str(claims["exp"])) - int(str(claims["iat"])) == seconds


@pytest.mark.parametrize(
    "arguments",
    [
        *(("shopper", "ada", "--ttl", ttl) for ttl in ("", "5", "0s", "-1h", "9999999999d", "1 h", "h")),
        ("shopper", ""),
        ("shopper", "x" * 129),
        ("shopper", "a\nb"),
        ("shopper",),
        ("shopper", "ada", "--count", "0"),
        ("shopper", "x" * 128, "--count", "1"),
        ("root",),
    ],
)
def test_wrong_usage_exits_2_and_prints_no_token(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert token(tmp_path, *arguments, status=2, FLASHSALE_SECRET=SECRET).stdout == ""


def test_50_000_tokens_in_under_3_seconds(tmp_path: Path) -> None:
    began = time.perf_counter()
    lines = token(tmp_path, "shopper", "crowd", "--count", "50000", FLASHSALE_SECRET=SECRET).stdout.splitlines()
    took_s = time.perf_counter() - began
    assert len(set(lines)) == 50_000
    assert (claims_of(lines[0])["sub"], claims_of(lines[-1])["sub"]) == ("crowd-1", "crowd-50000")
    assert took_s < 3


def test_json_is_one_document(tmp_path: Path) -> None:
    document = json.loads(token(tmp_path, "shopper", "ada", "--count", "2", "--json", FLASHSALE_SECRET=SECRET).stdout)
    assert [claims_of(text)["sub"] for text in document["tokens"]] == ["ada-1", "ada-2"]
    assert document["role"] == "shopper"
    assert document["expires_at"].endswith("Z")
