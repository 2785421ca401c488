"""A backup as files: a manifest, a file of COPY text a table, the secret.

COPY's text is the same in every PostgreSQL, so that a backup goes from any version into any other; the tables come from
this release's own migrations. All of it is checked by the manifest before anything of it is used.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from flashsale.ledger import schema

MANIFEST, SECRET = "manifest.json", "secret"
FORMAT = 1
_CHUNK = 1024 * 1024


class BadArchive(Exception):
    """No backup, or a damaged one; one line that says which file."""


class Table(msgspec.Struct, frozen=True):
    """One table: its columns in the file's order, rows, and the file's length and SHA-256."""

    name: str
    columns: list[str]
    rows: int
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup is of: release, PostgreSQL, the tables' revision, and the partition's epoch and mark (ms, seq).
    `tables` stand in an order in which they can be filled; `sequences`: the last number of each, None: none yet."""

    format: int
    release: str
    postgres: str
    revision: str
    made_at: str
    epoch: int
    mark: tuple[int, int]
    orders: int
    secret: bool
    tables: list[Table]
    sequences: dict[str, int | None]


def file_of(directory: Path, table: str) -> Path:
    """Where a table's rows lie."""
    return directory / f"{table}.copy"


def write(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest, last of all: a directory without one is no backup."""
    private(directory / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def private(path: Path, content: bytes) -> None:
    """A new file (0600), on disk when this returns."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read(directory: Path) -> Manifest:
    """The manifest, every file checked against it. Raises BadArchive."""
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except OSError as fault:
        raise BadArchive(f"{directory} is no backup: {MANIFEST}: {fault.strerror}") from fault
    except (msgspec.DecodeError, ValueError) as fault:
        raise BadArchive(f"{directory / MANIFEST} is damaged: {fault}") from fault
    if manifest.format != FORMAT:
        raise BadArchive(f"{directory} is of format {manifest.format}, this release reads {FORMAT}")
    if manifest.revision > schema.head():
        raise BadArchive(f"{directory} is of tables {manifest.revision}, this release knows {schema.head()}: update it")
    for table in manifest.tables:
        path = file_of(directory, table.name)
        try:
            size, digest = path.stat().st_size, _digest(path)
        except OSError as fault:
            raise BadArchive(f"{path}: {fault.strerror}") from fault
        if (size, digest) != (table.bytes, table.sha256):
            raise BadArchive(f"{path} is damaged: it is not what the manifest says")
    if manifest.secret and not (directory / SECRET).is_file():
        raise BadArchive(f"{directory / SECRET} is absent: every token would be void")
    return manifest


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
