"""Every knob of the engine: one object, read from FLASHSALE_… in the environment.

`flashsale config` prints this list, so each field says its unit in its name, its meaning and reason in
its description. Relies on pydantic-settings; imports nothing of ours, so that every other module may import it.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "FLASHSALE_"
KIB = 1024
MIB = 1024 * KIB
SECRET_MIN_BYTES = 32  # of every key that signs: one that is shorter can be found by trying (RFC 7518, section 3.2)
HOW_TO_MAKE_ONE = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
NEAR = 0.7  # how alike a misspelt variable and a setting's must be for the one to be named, of 1

# The unit of a setting whose name carries none.
_UNITS = {
    "port": "TCP port",
    "host": "address",
    "account": "user name",
    "data_dir": "path",
    "redis_url": "URL",
    "database_url": "URL",
    "processes": "processes",
    "durability": "memory | fsync",
    "partitions": "partitions",
    "secret": "UTF-8 text",
    "batch_max": "order lines",
    "batches_in_flight": "batches",
    "queue_max": "orders",
    "connections_max": "connections",
    "pipeline_max": "requests",
    "writer_rows": "rows",
    "ledger_connections": "connections",
    "valkey_connections": "connections",
    "pages_at_once": "pages",
    "stock_streams_max": "streams",
    "order_streams_max": "streams",
    "streams_of_one_max": "streams",
    "log_level": "level",
    "payments_url": "URL",
    "public_url": "URL",
    "management_port": "TCP port",
    "management_host": "address",
    "payments_sandbox_url": "URL",
    "shop_url": "URL",
    "return_origins": "origins",
    "payments_api_key": "key",
    "identities_url": "URL",
    "identities_api_key": "key",
    "carriers_url": "URL",
    "carriers_secret": "secret",
    "carriers_concurrency": "calls",
    "payments_webhook_secret": "secret",
    "payments_concurrency": "calls",
    "webhook_allow": "networks",
    "webhook_endpoint_concurrency": "deliveries",
    "webhook_circuit_failures": "tries",
    "webhook_log_days": "days",
}
SANDBOX_PAGES = "/sandbox/payments"
"""The path under which the payments sandbox's pages are shown on the engine's port."""
_PASSWORD = re.compile(r"(://[^:/@]*:)[^/@]*@")
_SUFFIX_UNITS = {"_ms": "ms", "_s": "s", "_seconds": "s", "_bytes": "bytes", "_mb": "MiB"}


class SettingsFault(Exception):
    """A setting that the engine can't run with; its text is one line that names the variable."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting as `flashsale config` shows it; the secret is masked."""

    name: str
    variable: str
    value: Any
    default: Any
    unit: str
    meaning: str


class Settings(BaseSettings):
    """The engine's settings. Build with `load()`, which turns faults into one line each."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore", validate_default=True)

    port: int = Field(8080, ge=1, le=65535, description="the one port for shoppers, pages and health")
    account: str = Field(
        "flashsale-parts",
        pattern="^[a-z_][a-z0-9_-]{0,31}$",
        description="under root: whom front ends, worker, sandbox and Valkey run as, made if absent; root = as root",
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on (in a container: 0.0.0.0)")
    management_port: int | None = Field(
        None, ge=1, le=65535, description="port for /metrics, /livez and /readyz apart from shoppers; unset: on PORT"
    )
    management_host: str = Field(
        "127.0.0.1", min_length=1, description="address of that port; this machine alone by default: it has no token"
    )
    public_url: str | None = Field(
        None, description="where shoppers reach the port (behind a proxy or a container's -p); unset: host and port"
    )
    data_dir: Path = Field(
        Path(".flashsale"), description="run.json, the secret, and the files of the embedded Valkey and PostgreSQL"
    )
    redis_url: str | None = Field(None, description="your own Valkey >= 8 or Redis >= 7.0; unset: the embedded one")
    database_url: str | None = Field(None, description="a PostgreSQL of your own; unset: the embedded one")
    processes: int = Field(1, ge=1, le=256, description="front-end processes that share the port")
    durability: Literal["memory", "fsync", "replicated"] = Field(
        "fsync", description="what an answered order survives: memory = a killed front end, fsync = a power cut too"
    )
    partitions: int = Field(1, ge=1, description="shards of shoppers; more than 1 is refused until stock can move")
    secret: SecretStr | None = Field(
        None, description="key of the bearer tokens; unset: made once by `up` and kept in data_dir/secret"
    )

    linger_ms: float = Field(0, ge=0, le=1000, description="how long a batch waits for company before it goes")
    batch_max: int = Field(1000, ge=20, le=2000, description="order lines in one script call: bounds Valkey's pauses")
    batches_in_flight: int = Field(
        1,
        ge=1,
        le=64,
        description="script calls under way at once from one front end, and one more that is full; 1 measured best",
    )
    queue_max: int = Field(20_000, ge=1, description="orders that may wait in one front end; beyond it: 503 overloaded")
    answer_within_ms: int = Field(
        5000, ge=1, le=600_000, description="an order still undecided after this is answered 504 outcome-unknown"
    )
    backlog_max_bytes: int = Field(
        256 * MIB, ge=1, description="journal not yet in the ledger; beyond it orders get 503 before any work"
    )
    maxmemory_mb: int = Field(2048, ge=64, description="memory of the embedded Valkey; must exceed the backlog's bound")
    log_replay_max_bytes: int = Field(
        1024 * MIB,
        ge=1 * MIB,
        description="Valkey may log so much in a sale before its log is rewritten; smaller: a sooner start after a kill"
        " and more seconds in which orders wait twice to five times as long",
    )

    connections_max: int = Field(20_000, ge=1, description="open connections of one front end; beyond it none is taken")
    head_max_bytes: int = Field(16 * KIB, ge=1 * KIB, description="request line and headers; beyond it: 431")
    body_max_bytes: int = Field(256 * KIB, ge=1 * KIB, description="request body; beyond it: 413")
    held_max_bytes: int = Field(
        6 * MIB,
        ge=256 * KIB,
        description="requests that came in part, or wait behind others, of all connections of a front end; beyond: 503",
    )
    unsent_max_bytes: int = Field(
        2 * MIB,
        ge=64 * KIB,
        description="answers that clients don't read, of a front end's connections together; beyond it the slowest go",
    )
    drop_max_bytes: int = Field(8 * MIB, ge=0, description="read and dropped after a 413 or 431 before closing")
    drop_seconds: float = Field(2, ge=0, description="the longest that a 413 or 431 reads and drops before closing")
    pipeline_max: int = Field(
        16, ge=1, description="unanswered requests on one connection before reading pauses: a thousand fit queue_max"
    )
    read_timeout_s: float = Field(10, gt=0, description="a request begun must be whole within this")
    idle_timeout_s: float = Field(75, gt=0, description="a connection without a request is closed after this")
    write_timeout_s: float = Field(20, gt=0, description="a client that reads nothing of its answer is cut after it")
    drain_timeout_s: float = Field(
        8, gt=0, le=10, description="a stopping front end answers what it took within this; `up` ends within 20 s"
    )

    payments_url: str | None = Field(
        None, description="the payment provider's API (Stripe's); unset: `up` starts the sandbox and uses that"
    )
    payments_sandbox_url: str | None = Field(
        None, description="set by `up`: the sandbox whose pages to pay at are shown on this port; no money moves there"
    )
    payments_api_key: SecretStr | None = Field(None, description="secret key of the payment provider's account")
    payments_webhook_secret: SecretStr | None = Field(
        None, description="with it the provider signs what it sends to /v1/webhooks/payments"
    )
    shop_url: str | None = Field(
        None, description="where shoppers go after they paid, if they name no place; unset: public_url"
    )
    return_origins: tuple[str, ...] = Field(
        (),
        description="as JSON: where a payment may lead back to beside public_url and shop_url",
    )
    payments_timeout_s: float = Field(10, gt=0, le=80, description="the longest that one call to the provider may take")
    payments_concurrency: int = Field(16, ge=1, le=200, description="calls to the provider under way at once")
    payments_silent_s: float = Field(60, gt=0, description="an intent that nothing was heard of for this long is asked")
    payments_backlog_max_bytes: int = Field(
        64 * MIB, ge=1 * MIB, description="webhooks not yet applied; beyond it the provider gets 503 and sends again"
    )
    identities_url: str | None = Field(
        None, description="the identity provider's API (flashsale sandbox identities, say); unset: nobody is verified"
    )
    identities_api_key: SecretStr | None = Field(None, description="key of the identity provider's account")
    identities_timeout_s: float = Field(5, gt=0, le=60, description="the longest that one identity check may take")
    carriers_url: str | None = Field(
        None, description="the carriers' API (flashsale sandbox carriers, say); unset: parcels are booked by hand"
    )
    carriers_secret: SecretStr | None = Field(
        None, description="whsec_ and base64: signs what the engine and the carriers tell each other"
    )
    carriers_timeout_s: float = Field(10, gt=0, le=60, description="the longest that one call to a carrier may take")
    carriers_concurrency: int = Field(16, ge=1, le=200, description="calls to carriers under way at once")
    carriers_silent_s: float = Field(
        21_600, gt=0, description="a parcel that nothing was heard of for this long is asked about"
    )
    provider_grace_s: float = Field(
        60, ge=0, description="how long after its deadline an order with an open intent waits for an absent provider"
    )
    extension_guard_s: float = Field(
        5, ge=0, description="a hold is not extended any more when less than this is left of it"
    )
    sweep_s: float = Field(1, gt=0, le=60, description="pause between two looks for holds past their deadline")
    webhook_retry_s: tuple[int, ...] = Field(
        (5, 30, 300, 1800, 7200, 18_000, 36_000, 36_000),
        description="pauses before each further try of an outgoing webhook, as JSON; given up after the last",
    )
    webhook_timeout_s: float = Field(10, gt=0, le=60, description="an endpoint answers a webhook within this")
    webhook_endpoint_concurrency: int = Field(
        4, ge=1, le=100, description="deliveries to one endpoint under way at once: a slow one holds up no other"
    )
    webhook_circuit_failures: int = Field(
        10, ge=1, description="failed tries in a row after which an endpoint is left alone for a while"
    )
    webhook_log_days: int = Field(30, ge=1, description="settled deliveries are kept in the log for so long")
    webhook_allow: tuple[str, ...] = Field(
        (), description="networks (CIDR), as JSON, where an endpoint may be private and plain http: for tests"
    )

    channel_stock_s: float = Field(
        1, ge=0.1, le=60, description="pause between two looks at what the channels may sell; what changed is pushed"
    )
    channel_give_up_s: float = Field(
        86_400, ge=1, description="a change of an order that its channel did not take within this is given up"
    )

    front_silent_s: float = Field(
        10,
        ge=0,
        description="a front end that shows no sign of life for so long is replaced; 0 = never",
    )
    silent_s: float = Field(
        30, ge=0, description="the same for worker, Valkey and PostgreSQL, which a slow disk may hold up; 0 = never"
    )

    ledger_timeout_s: float = Field(1, gt=0, description="the longest that a page waits for PostgreSQL before 503")
    ledger_connections: int = Field(4, ge=1, le=100, description="PostgreSQL connections of one front end's pages")
    stock_streams_max: int = Field(
        4000, ge=1, description="open event streams of stock of one front end: each holds a connection and a task"
    )
    order_streams_max: int = Field(4000, ge=1, description="open event streams of orders of one front end")
    streams_of_one_max: int = Field(
        256, ge=0, description="of these, from one address (stock) or shopper (orders); behind a proxy: 0, any number"
    )
    pages_at_once: int = Field(
        16, ge=1, le=1000, description="pages that one front end works on at once; more wait: each holds what it shows"
    )
    valkey_connections: int = Field(16, ge=1, le=1000, description="Valkey connections of one front end's pages")
    writer_rows: int = Field(5000, ge=1, le=100_000, description="order rows that the ledger writer commits at once")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe log line kept")

    @field_validator(
        "redis_url",
        "database_url",
        "secret",
        "payments_url",
        "management_port",
        "public_url",
        "payments_sandbox_url",
        "shop_url",
        "payments_api_key",
        "identities_url",
        "identities_api_key",
        "carriers_url",
        "carriers_secret",
        "payments_webhook_secret",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("secret")
    @classmethod
    def _one_line(cls, value: SecretStr | None) -> SecretStr | None:
        # It is kept in a file and pasted into shells: a line break at its end would make two keys of one.
        if value is not None and not value.get_secret_value().isprintable():
            raise ValueError("control characters and line breaks have no place in the secret")
        return value

    @field_validator("secret", "payments_webhook_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (short := too_short(value.get_secret_value())):
            raise ValueError(short)
        return value

    @field_validator("redis_url")
    @classmethod
    def _spoken(cls, value: str | None) -> str | None:
        if value is None or urlsplit(value).scheme in ("redis", "valkey", "unix"):
            return value
        if urlsplit(value).scheme in ("rediss", "valkeys"):
            raise ValueError(
                "TLS to Valkey is not spoken: end it beside the engine (stunnel, or a private network) and give redis://"
            )
        raise ValueError("redis://[user:password@]host:port/db, or unix:///path?db=N")

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("postgresql", "postgres"):
            raise ValueError("postgresql://user:password@host:port/database")
        return value

    @field_validator("carriers_url", "public_url", "payments_sandbox_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("https://", "http://")):
            raise ValueError("an http or https URL")
        return None if value is None else value.rstrip("/")

    @field_validator("carriers_secret")
    @classmethod
    def _standard_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return value
        name, given = "whsec_", value.get_secret_value()
        try:
            key = b64decode(given.removeprefix(name), validate=True) if given.startswith(name) else b""
        except ValueError:
            key = b""
        if len(key) < SECRET_MIN_BYTES:
            raise ValueError(f"whsec_ and the base64 of at least {SECRET_MIN_BYTES} bytes, as Standard Webhooks has it")
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # It stands in the servers' own settings, which are lines of UTF-8.
        if not str(value).isprintable():
            raise ValueError("control characters, line breaks and bytes that are no UTF-8 have no place in the path")
        return value.expanduser().absolute()

    @field_validator("durability")
    @classmethod
    def _built(cls, value: str) -> str:
        if value == "replicated":
            raise ValueError("'replicated' is not built yet: use fsync (the default) or memory")
        return value

    @field_validator("partitions")
    @classmethod
    def _one_partition(cls, value: int) -> int:
        if value > 1:
            raise ValueError("more than 1 partition needs stock moves, which are not built yet: leave it at 1")
        return value

    @field_validator("return_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if origin_of(text) != text:
                raise ValueError(
                    f"{text!r} is no origin: https://shop.example, with a port where it is not the usual one"
                )
        return value

    @field_validator("webhook_allow")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            ip_network(text)
        return value

    @model_validator(mode="after")
    def _carriers_sign(self) -> Self:
        if self.carriers_url is not None and self.carriers_secret is None:
            raise ValueError(f"{ENV_PREFIX}CARRIERS_URL needs {ENV_PREFIX}CARRIERS_SECRET, which signs what it is sent")
        return self

    @model_validator(mode="after")
    def _backlog_fits(self) -> Self:
        if self.redis_url is None and self.backlog_max_bytes >= self.maxmemory_mb * MIB:
            raise ValueError(
                f"{ENV_PREFIX}BACKLOG_MAX_BYTES ({self.backlog_max_bytes}) must be below "
                f"{ENV_PREFIX}MAXMEMORY_MB ({self.maxmemory_mb} MiB): the journal lives in Valkey's memory"
            )
        return self

    @property
    def public_address(self) -> str:
        """Where shoppers reach the engine, without a slash at its end."""
        return self.public_url or f"http://{reachable(self.host)}:{self.port}"

    def may_return_to(self, url: str) -> bool:
        """Whether a payment may lead back there."""
        own = [self.public_address, *([self.shop_url] if self.shop_url else [])]
        return origin_of(url) in {*map(origin_of, own), *self.return_origins}

    def knobs(self) -> Iterator[Knob]:
        """Every setting in the order of this file; secret and passwords are masked."""
        for name, field in type(self).model_fields.items():
            value, default = getattr(self, name), field.default
            if isinstance(value, SecretStr):
                value = "(set)"
            elif name.endswith("_url") and value is not None:
                value = _PASSWORD.sub(r"\1***@", value)
            yield Knob(
                name=name,
                variable=ENV_PREFIX + name.upper(),
                value=str(value) if isinstance(value, Path) else value,
                default=f"./{default}" if isinstance(default, Path) else default,
                unit=unit_of(name),
                meaning=field.description or "",
            )


def reachable(host: str) -> str:
    """The address under which this machine reaches a server that listens on host, as it stands in a URL."""
    if host in ("0.0.0.0", "::", "localhost"):  # noqa: S104 - compared, not bound
        return "127.0.0.1" if host != "::" else "[::1]"
    return f"[{host}]" if ":" in host else host


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL (RFC 6454), the port left out where it is the scheme's own; "" for no http URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = port is None or port == {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if usual else f":{port}")


def too_short(secret: str) -> str | None:
    """Why nobody should sign with this secret; None where it is long enough. Blanks at its ends don't count."""
    length = len(secret.strip().encode())
    if length >= SECRET_MIN_BYTES:
        return None
    return f"a secret has at least {SECRET_MIN_BYTES} bytes, this one {length}; {HOW_TO_MAKE_ONE}"


def unit_of(name: str) -> str:
    """The unit of a setting: from its name's suffix, else from the table above."""
    if name in _UNITS:
        return _UNITS[name]
    return next((unit for suffix, unit in _SUFFIX_UNITS.items() if name.endswith(suffix)), "")


def misspelt(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that are called like a setting and are none, each with a line: it would change nothing, in silence."""
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    unknown = sorted(name for name in environment if name.startswith(ENV_PREFIX) and name not in known)
    lines = {}
    for name in unknown:
        own, names = name.removeprefix(ENV_PREFIX), [each.removeprefix(ENV_PREFIX) for each in known]
        near = get_close_matches(own, names, n=1, cutoff=NEAR)
        meant = f"did you mean {ENV_PREFIX}{near[0]}?" if near else "`flashsale config` lists the settings"
        lines[name] = f"{name} is no setting and changes nothing: {meant}"
    return lines


def load(**overrides: Any) -> Settings:
    """Settings from the environment; overrides that are None are left out.

    Raises SettingsFault with one line that names the first variable at fault.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise SettingsFault(message) from None
        raise SettingsFault(f"{ENV_PREFIX}{str(first['loc'][0]).upper()}: {message}") from None
