"""`flashsale up` from outside: one command to a running engine, nothing left behind, the data kept."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import asyncpg
import pytest

import flashsale
from flashsale import unprivileged
from flashsale.embedded import PostgresServer, application_role
from flashsale.ledger.migrate import migrate
from tests.conftest import FLASHSALE, Engine
from tests.processes import pids, still_running, tree, wait_until_gone
from tests.wire import PATIENCE_S, Wire, ask, get, post

STOPPED_WITHIN_S = 20  # the contract's


def run_file(engine: Engine) -> dict[str, object]:
    return dict(json.loads((engine.data_dir / "run.json").read_text()))


def curl_line(engine: Engine) -> list[str]:
    line = next(line for line in engine.output.read_text().splitlines() if "curl " in line)
    return shlex.split(line[line.index("curl ") :])


def pasted(engine: Engine) -> dict[str, object]:
    """What the printed curl line answers."""
    done = subprocess.run([*curl_line(engine), "--fail-with-body"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_up_is_ready_and_its_curl_line_orders(engine: Engine) -> None:
    assert engine.output.read_text().splitlines()[-1] == f"ready {engine.url}"
    assert engine.is_ready()
    order = pasted(engine)
    assert (order["sale"], order["status"]) == ("double11", "reserved")
    assert pasted(engine)["id"] == order["id"]  # pasted twice it is the same order


async def test_an_order_is_paid_through_the_engines_own_port(engine: Engine) -> None:
    """As in a container, where the shopper's browser reaches that port alone."""
    order = pasted(engine)
    path, bearer = f"/v1/orders/{order['id']}/payment", curl_line(engine)[curl_line(engine).index("-H") + 1]
    headers = dict([bearer.split(": ", 1)])
    async with aiohttp.ClientSession() as browser:
        body = {"method": "card", "return_url": f"{engine.url}/docs"}
        async with browser.post(engine.url + path, json=body, headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            pay_url = (await answer.json())["pay_url"]
        assert pay_url.startswith(f"{engine.url}/sandbox/payments/c/pay/cs_")
        async with browser.get(pay_url) as shown:
            assert shown.status == 200
            form = re.search(r'action="([^"]+)"', await shown.text())
        assert form is not None
        data = urlencode({"method": "card", "action": "pay"}).encode()
        head = post(form[1], data, media_type="application/x-www-form-urlencoded").removesuffix(data)
        with await Wire.open(engine.port) as wire:  # a form may come after its head, on its own
            await wire.send(head.replace(b"\r\n", b"\r\nExpect: 100-continue\r\n", 1))
            while b"100 Continue" not in wire.received:
                assert await wire.read_some(PATIENCE_S), "the form is not wanted"
            await wire.send(data)
            (paid,) = await wire.read(1)
            assert (paid.status, paid.headers["location"]) == (303, f"{engine.url}/docs")
        async with browser.get(engine.url + path, headers=headers) as seen:
            assert (await seen.json())["status"] in ("none", "authorised")
        # Its API and its faults stay where they are, and nothing leads out of its pages.
        for strange in ("/v1/payment_intents", "/sandbox/faults", "/c/pay/..%2f..%2fv1", "/sandbox/"):
            async with browser.get(f"{engine.url}/sandbox/payments{strange}") as refused:
                assert refused.status == 404
    warnings = (await ask(engine.port, get("/readyz")))[0].json()["warnings"]
    assert "payments go to the sandbox: no money moves" in warnings


async def test_a_misspelt_variable_is_told_and_a_database_of_ones_own_gets_no_demo_sale(
    make_engine: Callable[..., Engine], ledger: str
) -> None:
    engine = make_engine(FLASHSALE_DATABASE_URL=ledger, FLASHSALE_PROT="80")
    engine.start()
    assert "FLASHSALE_PROT is no setting and changes nothing: did you mean FLASHSALE_PORT?" in engine.errors.read_text()
    assert (await ask(engine.port, get("/v1/sales")))[0].json()["sales"] == []
    assert "no sale is open" in engine.output.read_text()


async def test_metrics_move_to_the_management_port_and_health_answers_on_both(
    make_engine: Callable[..., Engine],
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = make_engine(FLASHSALE_MANAGEMENT_PORT=str(port), FLASHSALE_PROCESSES="2").start()
    here = [(await ask(engine.port, get(path)))[0].status for path in ("/livez", "/readyz", "/metrics")]
    there = [(await ask(port, get(path)))[0] for path in ("/livez", "/readyz", "/metrics")]
    assert here == [200, 200, 404]
    assert [answer.status for answer in there] == [200, 200, 200]
    assert b"flashsale_valkey_up 1.0" in there[2].body
    assert (await ask(port, get("/v1/sales")))[0].status == 404  # nothing of the shoppers' is there
    assert f"http://127.0.0.1:{port}/metrics" in engine.output.read_text()
    other = make_engine("other", FLASHSALE_MANAGEMENT_PORT=str(port))
    process = other.spawn()
    assert process.wait(30) == 1
    assert f"another engine runs on port {port}" in other.errors.read_text()


def test_run_json_names_every_part_and_is_private(engine: Engine) -> None:
    running = run_file(engine)
    assert {"front", "worker", "valkey", "postgres"} <= running.keys()
    assert stat.S_IMODE((engine.data_dir / "run.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((engine.data_dir / "secret").stat().st_mode) == 0o600
    assert set(pids(engine).values()) <= {process.pid for process in tree(engine)}
    assert [front["port"] for front in running["front"]] == [engine.port]  # type: ignore[attr-defined]


async def test_the_engine_s_role_owns_its_ledger_and_nothing_else(engine: Engine) -> None:
    connection = await asyncpg.connect(str(run_file(engine)["postgres"]["address"]))  # type: ignore[index]
    try:
        role = await connection.fetchrow("SELECT * FROM pg_roles WHERE rolname = current_user")
        assert role is not None
        rights = [
            name for name in ("super", "createdb", "createrole", "replication", "bypassrls") if role[f"rol{name}"]
        ]
        assert rights == []
        strangers = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relowner <> current_user::regrole"
        )
        assert strangers == []
        for beyond in (
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('PG_VERSION')",
            "CREATE DATABASE more",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(beyond)
    finally:
        await connection.close()


async def test_a_ledger_from_before_the_role_becomes_the_role_s(own_postgres: Callable[..., PostgresServer]) -> None:
    server = own_postgres()
    server.start()
    await migrate(server.url)  # as the superuser, as it was done once
    await server.let_application_in()
    await migrate(server.application_url)
    connection = await asyncpg.connect(server.application_url)
    try:
        owners = await connection.fetch(
            "SELECT DISTINCT relowner::regrole::text AS owner FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace UNION"
            " SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        )
        assert {row["owner"] for row in owners} == {application_role.NAME}
        await connection.execute("CREATE TABLE more (n int); DROP TABLE more; ALTER TABLE orders ADD COLUMN more int")
    finally:
        await connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="there are other accounts for root alone")
def test_under_root_no_part_that_a_stranger_speaks_to_is_root(engine: Engine) -> None:
    users = {process.pid: process.username() for process in tree(engine)}
    by_name = {name: users[pid] for name, pid in pids(engine).items() if pid is not None}
    assert by_name.pop("postgres") == unprivileged.ACCOUNT
    assert set(by_name.values()) == {"flashsale-parts"}
    assert "root" not in users.values()
    for name in ("secret", "run.json", "postgres-password", "postgres-application-password"):
        status = (engine.data_dir / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600), name


@pytest.mark.slow
def test_sigterm_leaves_nothing_and_the_next_up_goes_on(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine().start()
    order = pasted(engine)
    line, token, secret = curl_line(engine), engine.token("admin"), (engine.data_dir / "secret").read_text()
    processes = tree(engine)
    began = time.monotonic()
    assert engine.stop() == 0
    assert time.monotonic() - began < STOPPED_WITHIN_S
    assert still_running(processes) == []
    assert not (engine.data_dir / "run.json").exists()

    engine.start()
    assert (engine.data_dir / "secret").read_text() == secret
    replay = subprocess.run([*line, "--include"], capture_output=True, text=True, timeout=10, check=True).stdout
    assert str(order["id"]) in replay
    assert "idempotent-replayed: true" in replay.lower()
    answer = subprocess.run(
        ["curl", "-sS", f"{engine.url}/v1/orders/{order['id']}", "-H", f"Authorization: Bearer {token}"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert json.loads(answer.stdout)["id"] == order["id"]
    assert engine.stop() == 0


@pytest.mark.slow
def test_kill_of_the_supervisor_leaves_nothing_and_the_next_up_works(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(FLASHSALE_PROCESSES="2").start()
    order = pasted(engine)
    line, processes = curl_line(engine), tree(engine)
    assert len(pids(engine)) == 5
    assert engine.process is not None
    engine.process.kill()
    engine.process.wait()
    wait_until_gone(processes)

    engine.start()
    done = subprocess.run(line, capture_output=True, text=True, timeout=10, check=True)
    assert json.loads(done.stdout)["id"] == order["id"]
    assert engine.stop() == 0


@pytest.mark.slow
def test_a_part_that_dies_is_started_again(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine().start()
    for name in ("front 0", "worker", "valkey", "postgres"):
        killed = pids(engine)[name]
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while pids(engine).get(name) in (killed, None):
            assert time.monotonic() < deadline, name
            time.sleep(0.02)
        engine.wait_until_ready()
        assert pasted(engine)["sale"] == "double11", name
    assert engine.stop() == 0


def test_a_second_engine_is_refused_in_one_line(engine: Engine, make_engine: Callable[..., Engine]) -> None:
    same_directory = Engine(engine.data_dir)
    other_directory = make_engine(port=engine.port)
    for second, words in ((same_directory, "another engine runs on"), (other_directory, f"port {engine.port}")):
        done = second.command("up", check=False)
        assert done.returncode == 1
        assert done.stdout == ""
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert engine.is_ready()


@pytest.mark.slow
def test_a_stop_ends_within_its_time_though_every_part_hangs(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(FLASHSALE_DRAIN_TIMEOUT_S="10").start()
    processes = tree(engine)
    assert engine.process is not None
    for process in processes:
        if process.pid != engine.process.pid:
            process.suspend()
    began = time.monotonic()
    assert engine.stop() == 0
    assert time.monotonic() - began < STOPPED_WITHIN_S
    assert still_running(processes) == []


@pytest.mark.slow
def test_a_second_signal_stops_at_once(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine().start()
    processes = tree(engine)
    assert engine.process is not None
    for sig in (signal.SIGINT, signal.SIGINT):
        engine.process.send_signal(sig)
    engine.process.wait(5)
    wait_until_gone(processes)


def test_a_signal_during_the_start_leaves_nothing(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    process = engine.spawn()
    deadline = time.monotonic() + 20
    while not (engine.data_dir / "run.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes = tree(engine)
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOPPED_WITHIN_S) == 0
    assert still_running(processes) == []


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_serve_and_worker_refuse_to_start_without_a_secret(tmp_path: Path, command: str) -> None:
    urls = {"FLASHSALE_REDIS_URL": "redis://127.0.0.1:1", "FLASHSALE_DATABASE_URL": "postgresql://127.0.0.1:1/none"}
    done = Engine(tmp_path / "none", **urls).command(command, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no secret" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("FLASHSALE_DURABILITY", "replicated", "not built yet"),
        ("FLASHSALE_PARTITIONS", "2", "not built yet"),
        ("FLASHSALE_PORT", "0", "greater than or equal to 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(tmp_path: Path, variable: str, value: str, words: str) -> None:
    done = Engine(tmp_path / "none", **{variable: value}).command("up", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert variable in done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_ordinary_user_needs_nothing_of_root(make_engine: Callable[..., Engine]) -> None:
    """Under root: as the account that PostgreSQL runs as. Else every test here says it already, and so does this."""
    engine = make_engine()
    uid, gid = os.geteuid(), os.getegid()
    home = Path(tempfile.mkdtemp(prefix="flashsale-test-"))  # pytest's own directories are root's alone
    if uid == 0:
        account = unprivileged.account()
        uid, gid = account.pw_uid, account.pw_gid
        os.chown(home, uid, gid)
        for place in (FLASHSALE, Path(sys.executable).resolve(), Path(flashsale.__file__)):
            unprivileged.let_in(place.parent, uid, gid)
    environment = {**engine.environment, "FLASHSALE_DATA_DIR": str(home / "data"), "HOME": str(home)}
    try:
        with engine.output.open("wb") as output, engine.errors.open("wb") as errors:
            engine.process = subprocess.Popen(
                [str(FLASHSALE), "up"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                user=uid if os.geteuid() == 0 else None,
                group=gid if os.geteuid() == 0 else None,
                extra_groups=[] if os.geteuid() == 0 else None,
                cwd=home,
            )
        engine.wait_for_line(f"ready {engine.url}")
        processes = tree(engine)
        assert {process.uids().real for process in processes} == {uid}
        assert pasted(engine)["sale"] == "double11"
        assert engine.stop() == 0
        assert still_running(processes) == []
    finally:
        if engine.process is not None and engine.process.poll() is None:
            engine.process.kill()
            engine.process.wait()
        shutil.rmtree(home)
