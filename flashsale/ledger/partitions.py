"""The partition rows: epoch and mark. Who moves the mark names mark, epoch and the Valkey it moved from: the fence."""

from dataclasses import dataclass

from flashsale.ledger.pool import Connection


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition as the ledger knows it."""

    id: int
    epoch: int
    mark: tuple[int, int]  # journal id (ms, seq) of the last entry in the ledger
    mark_bytes: int  # journal bytes written up to there
    version: int  # catalogue version in force at the mark, 0: none yet
    run_id: str | None  # the Valkey that was verified last


_COLUMNS = "id, epoch, mark_ms, mark_seq, mark_bytes, version, run_id"


async def get(connection: Connection, partition: int) -> Partition | None:
    """The partition's row, None before its first initialisation."""
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM partition WHERE id = $1", partition)  # noqa: S608
    return None if row is None else Partition(row[0], row[1], (row[2], row[3]), row[4], row[5], row[6])


async def ensure(connection: Connection, partition: int) -> Partition:
    """The partition's row, made (epoch 0: nothing was ever built from it) where it is absent."""
    await connection.execute("INSERT INTO partition (id, epoch) VALUES ($1, 0) ON CONFLICT DO NOTHING", partition)
    row = await get(connection, partition)
    assert row is not None  # noqa: S101  rows of this table are never deleted
    return row


async def move_mark(
    connection: Connection, partition: Partition, mark: tuple[int, int], mark_bytes: int, version: int
) -> bool:
    """Moves the mark from where `partition` says it is. False, changing nothing: another writer or epoch was faster, or
    another process of Valkey was verified since: it may lack what was read from the one before."""
    status = await connection.execute(
        "UPDATE partition SET mark_ms = $5, mark_seq = $6, mark_bytes = $7, version = $8"
        " WHERE id = $1 AND mark_ms = $2 AND mark_seq = $3 AND epoch = $4 AND run_id IS NOT DISTINCT FROM $9",
        partition.id, partition.mark[0], partition.mark[1], partition.epoch, mark[0], mark[1], mark_bytes, version,
        partition.run_id,
    )  # fmt: skip
    return bool(status == "UPDATE 1")


async def lock(connection: Connection, partition: int) -> None:
    """Holds the row until the transaction ends: nobody moves the mark in between."""
    await connection.execute("SELECT FROM partition WHERE id = $1 FOR UPDATE", partition)


async def raise_epoch(connection: Connection, partition: int, above: int = 0) -> int:
    """The next epoch, beyond `above` too; the row is locked until the transaction ends, and no writer of an older epoch
    commits after it."""
    epoch = await connection.fetchval(
        "UPDATE partition SET epoch = greatest(epoch, $2) + 1 WHERE id = $1 RETURNING epoch", partition, above
    )
    return int(epoch)


async def set_verified(connection: Connection, partition: int, run_id: str) -> None:
    """Remembers which Valkey was verified, and when."""
    await connection.execute("UPDATE partition SET run_id = $2, verified_at = now() WHERE id = $1", partition, run_id)
