"""The embedded servers: they answer, keep their data through kill -9, and leave nothing running."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
import redis

from flashsale import tether
from flashsale.embedded import PostgresServer, ServerFault, ValkeyServer
from tests.conftest import REDIS_SERVER


def test_valkey_is_set_up_as_the_engine_demands(valkey: ValkeyServer) -> None:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        settings = client.config_get("*")
        info = client.info()
    assert info["valkey_version"].startswith("9.")
    assert info["process_id"] == valkey.pid
    assert (settings["port"], settings["save"], settings["maxmemory-policy"]) == ("0", "", "noeviction")
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")
    assert settings["auto-aof-rewrite-percentage"] == "0"
    assert int(settings["maxmemory"]) > 0


def test_a_server_gets_nothing_of_the_engine_s_environment(
    own_valkey: Callable[..., ValkeyServer],
    own_postgres: Callable[..., PostgresServer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("FLASHSALE_SECRET", "of-the-engine, and long enough for a key")
    # Valkey writes its title over what /proc shows of it: a program before it tells what it was given.
    first = tmp_path / "first"
    first.write_text(f'#!/bin/sh\nenv > {tmp_path}/given\nexec {REDIS_SERVER} "$@"\n')
    first.chmod(0o700)
    valkey, postgres = own_valkey(binary=first, durability="memory"), own_postgres()
    valkey.start()
    postgres.start()
    for environment in (tmp_path / "given", Path(f"/proc/{postgres.pid}/environ")):
        given = environment.read_text()
        assert "LC_ALL=C" in given
        assert "FLASHSALE" not in given


def test_redis_7_starts_with_the_same_settings(redis7: ValkeyServer) -> None:
    with redis.Redis.from_url(redis7.url, decode_responses=True) as client:
        assert client.info()["redis_version"].startswith("7.0.")
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_valkey_keeps_what_it_answered_through_kill(own_valkey: Callable[..., ValkeyServer]) -> None:
    server = own_valkey()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.hset("kept", mapping={"a": 1, "b": 2})
    server.kill()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.hgetall("kept") == {b"a": b"1", b"b": b"2"}


def test_a_long_path_gets_a_short_socket(own_valkey: Callable[..., ValkeyServer], tmp_path: Path) -> None:
    server = own_valkey("v" * 120)
    server.start()
    assert len(os.fsencode(server.socket_path)) <= 100
    assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
    outside = server.socket_path.parent
    server.stop()
    assert not outside.exists()


def test_postgres_demands_its_password(_postgres_session: PostgresServer) -> None:
    url = _postgres_session.url

    async def query(address: str) -> object:
        connection = await asyncpg.connect(address)
        try:
            return await connection.fetchval("SELECT current_setting('listen_addresses') || version()")
        finally:
            await connection.close()

    assert str(asyncio.run(query(url))).startswith("PostgreSQL 18")
    password = url.split(":")[2].split("@")[0]
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(query(url.replace(password, "guess")))


def test_postgres_keeps_its_rows_through_kill(own_postgres: Callable[..., PostgresServer]) -> None:
    server = own_postgres("p" * 110)
    server.start()

    async def run(statement: str) -> object:
        connection = await asyncpg.connect(server.url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    asyncio.run(run("CREATE TABLE kept AS SELECT 42 AS answer"))
    server.kill()
    server.start()
    assert asyncio.run(run("SELECT answer FROM kept")) == 42
    server.stop()
    assert tether.living_in(server.directory, "postgres") == []


def test_postgres_of_root_runs_as_another_user_in_a_private_directory(_postgres_session: PostgresServer) -> None:
    status = Path(f"/proc/{_postgres_session.pid}").stat()
    assert status.st_uid != 0
    assert stat.S_IMODE(_postgres_session.directory.stat().st_mode) == 0o700
    assert _postgres_session.directory.stat().st_uid == status.st_uid
    # pytest's own directories are 0700: the way in was an ACL entry for this account, nobody else got one.
    assert not _postgres_session.directory.parent.stat().st_mode & stat.S_IRWXO


def test_a_data_directory_of_another_version_is_refused_in_one_line(
    own_postgres: Callable[..., PostgresServer],
) -> None:
    server = own_postgres()
    server.directory.mkdir()
    (server.directory / "PG_VERSION").write_text("13\n")
    with pytest.raises(ServerFault, match="made by PostgreSQL 13, this is 18") as refused:
        server.start()
    assert "\n" not in str(refused.value)


def test_servers_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    """kill -9 of the parent: neither server, nor any of PostgreSQL's own processes, is left."""
    program = (
        "import sys; from pathlib import Path; from flashsale.embedded import *\n"
        f"v = ValkeyServer(Path({str(tmp_path / 'valkey')!r})); v.start()\n"
        f"p = PostgresServer(Path({str(tmp_path / 'postgres')!r})); p.start()\n"
        "print(v.pid, p.pid, flush=True); sys.stdin.read()\n"
    )

    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline().split()
    assert tether.living_in(tmp_path / "valkey", "valkey-server")
    assert len(tether.living_in(tmp_path / "postgres", "postgres")) > 3
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while tether.living_in(tmp_path / "valkey", "valkey-server") or tether.living_in(tmp_path / "postgres", "postgres"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
