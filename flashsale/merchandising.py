"""The `sale` commands as functions: what a sale is goes to the ledger first, then to Valkey, which decides by it.

A change of the catalogue is obeyed by every process when the command returns, without waiting for any of them:
reserve.lua refuses each batch that was priced at another version than the one that publish.lua put in force, and a
front that is refused loads the new one before it sends again. Status, suspensions and supply are Valkey's own, read by
the script with every batch; they come to the ledger through the journal, and need no ledger now.

Every function may be called again after a failure: what the ledger has and Valkey lacks is carried over.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.resources import files

import redis.asyncio
from msgspec.structs import replace
from redis.exceptions import RedisError

from flashsale.ledger import sales
from flashsale.ledger.pool import Connection
from flashsale.reservation import commands, server
from flashsale.reservation.commands import SaleState, SaleWindow, StatusAction, StockLevel
from flashsale.sale.catalogue import SALE_KEY_BYTES, SALE_NUMBER_MAX, Catalogue, Sale, updated
from flashsale.sale.salefile import SaleFile, canonical, parse_sale_file
from flashsale.sale.world import World, packaged

PARTITION = 0
"""The one partition there is: PARTITIONS above 1 is refused until stock can move between them."""

DEMO_SALE = "double11"
DEMO_OPEN_MS = 30 * 86_400_000
"""The demo sale is open for 30 days from the engine's first start."""

KNOWN_SALES_NAMED = 20
"""At most so many in the line that says that there is no such sale."""


class CommandRefused(Exception):
    """A sale command that was not carried out: one line that says why. Nothing was changed, unless the line says that
    the change is stored: then only Valkey lacks it."""


@dataclass(frozen=True, slots=True)
class SaleView:
    """A sale as `sale list` and `sale show` print it: the catalogue's words, Valkey's numbers of one instant."""

    sale: Sale
    state: SaleState

    @property
    def phase(self) -> str:
        """What a shopper meets now: upcoming, open, paused or closed."""
        return self.state.phase


async def create(
    valkey: redis.asyncio.Redis,
    ledger: Connection,
    file: SaleFile,
    text: str,
    *,
    window_ms: tuple[int, int] | None = None,
) -> bool:
    """Makes the sale that `text` says and `file` is; False where the same file made it before.

    `window_ms` (opens, closes) takes the place of the file's. Raises CommandRefused where the id is another file's.
    """
    async with _catalogue_change(ledger) as catalogue:
        row = await sales.get(ledger, file.id)
        if row is not None and canonical(_stored_file(row)) != canonical(file):
            # Also the file that it was made from, if an update came since: exit 0 would say that its prices hold.
            raise CommandRefused(
                f"sale {file.id} exists, made or since updated from another file; `flashsale sale update` changes it"
            )
        if row is None:
            if len(catalogue.sales) >= SALE_NUMBER_MAX:
                raise CommandRefused(f"there are {SALE_NUMBER_MAX} sales: no number is left for another")
            row = await sales.insert(ledger, file.id, secrets.token_bytes(SALE_KEY_BYTES), text)
            sale = Sale.from_file(file if window_ms is None else file.with_window(*window_ms), row.number, row.key)
            here = in_present_world(catalogue)
            guarantees(here.world, sale)
            await sales.insert_offers(ledger, sale.number, [offer.sku for offer in sale.offers])
            await _store(ledger, here.with_sale(sale))
            made = True
        else:
            made = False
    with _stored(file.id):
        await _carry_over(valkey, ledger)
    return made


async def bring_up_to_date(valkey: redis.asyncio.Redis, ledger: Connection) -> None:
    """At an engine's start: sales that there are sell into the world that this release knows, and Valkey has them."""
    async with _catalogue_change(ledger) as catalogue:
        if catalogue.sales and in_present_world(catalogue) is not catalogue:
            await _store(ledger, catalogue.with_world(packaged()))
    await _carry_over(valkey, ledger)


async def ensure_demo_sale(valkey: redis.asyncio.Redis, ledger: Connection) -> bool:
    """Makes `double11` from the packaged file, open from now for 30 days; False, changing nothing, if it is there."""
    if await sales.get(ledger, DEMO_SALE) is not None:
        return False
    text = files("flashsale.sale").joinpath(f"{DEMO_SALE}.toml").read_text(encoding="utf-8")
    file = parse_sale_file(text, f"{DEMO_SALE}.toml")
    seconds, microseconds = await valkey.time()
    now_ms = seconds * 1000 + microseconds // 1000
    return await create(valkey, ledger, file, text, window_ms=(now_ms, now_ms + DEMO_OPEN_MS))


async def update(valkey: redis.asyncio.Redis, ledger: Connection, file: SaleFile, text: str) -> bool:
    """Changes the sale to what `text` says and `file` is; False where it says that already.

    The window changes only if the file's did, so that another price doesn't undo `open`. Raises CommandRefused where
    there is no such sale, SaleFileFaults where the file takes away an offer or a market or changes a stock.
    """
    changed = await store_file(ledger, file, text)
    with _stored(file.id):
        await _carry_over(valkey, ledger)
    return changed


async def stored_file(ledger: Connection, sale_id: str) -> SaleFile:
    """The file that the sale is of now. Raises CommandRefused where there is no such sale."""
    row = await sales.get(ledger, sale_id)
    if row is None:
        raise CommandRefused(f"there is no sale {sale_id!r}")
    return _stored_file(row)


async def carry_over(valkey: redis.asyncio.Redis, ledger: Connection, sale_id: str) -> None:
    """Brings Valkey to what the ledger has of the sales. Raises CommandRefused, which says that it is stored."""
    with _stored(sale_id):
        await _carry_over(valkey, ledger)


async def lock_sales(ledger: Connection) -> None:
    """Until this transaction is over no other command changes a sale: what is read now is what is changed."""
    await sales.lock_catalogue(ledger)


async def store_file(ledger: Connection, file: SaleFile, text: str) -> bool:
    """The ledger's part of `update`: Valkey learns of it by `carry_over`, behind the transaction that this is in."""
    async with _catalogue_change(ledger) as catalogue:
        old = _sale(catalogue, file.id)
        row = await sales.get(ledger, file.id)
        assert row is not None  # noqa: S101  sale and catalogue are stored in one transaction
        stored = _stored_file(row)
        changed = canonical(stored) != canonical(file)
        if changed:
            sale = updated(old, file)
            if (file.opens_at_ms, file.closes_at_ms) == (stored.opens_at_ms, stored.closes_at_ms):
                sale = replace(sale, opens_at_ms=old.opens_at_ms, closes_at_ms=old.closes_at_ms)
            here = in_present_world(catalogue)
            guarantees(here.world, sale)
            added = sale.offers[len(old.offers) :]
            await sales.set_file(ledger, sale.number, text)
            await sales.insert_offers(ledger, sale.number, [offer.sku for offer in added], len(old.offers))
            await _store(ledger, here.with_sale(sale))
    return changed


async def open_now(valkey: redis.asyncio.Redis, ledger: Connection, sale_id: str) -> SaleWindow:
    """Opens the sale now, whatever its file says, or ends its pause. Raises CommandRefused if it is closed or over."""
    await _carry_over(valkey, ledger)
    async with _catalogue_change(ledger) as catalogue:
        sale = _sale(catalogue, sale_id)
        state = await _state(valkey, sale)
        if state.status != "closed" and state.now_ms < min(sale.opens_at_ms, sale.closes_at_ms):
            await _store(ledger, catalogue.with_sale(replace(sale, opens_at_ms=state.now_ms)))
    with _stored(sale_id):
        await _carry_over(valkey, ledger)
    return await _set_status(valkey, sale_id, "open")


async def pause(valkey: redis.asyncio.Redis, sale_id: str) -> SaleWindow:
    """No new orders until `resume`; who ordered before still gets the same answer. Raises CommandRefused."""
    return await _set_status(valkey, sale_id, "pause")


async def resume(valkey: redis.asyncio.Redis, sale_id: str) -> SaleWindow:
    """Ends a pause. Raises CommandRefused."""
    return await _set_status(valkey, sale_id, "resume")


async def close(valkey: redis.asyncio.Redis, sale_id: str) -> SaleWindow:
    """Closes the sale for ever. Raises CommandRefused where there is no such sale."""
    return await _set_status(valkey, sale_id, "close")


async def set_stock(valkey: redis.asyncio.Redis, sale_id: str, sku: str, *, to: int, expect: int) -> StockLevel:
    """Sets the supply of `sku` to `to` units if it is `expect`. Raises CommandRefused if it isn't or more are taken."""
    index = await _index(valkey, sale_id, sku)
    epoch = await _verified_epoch(valkey)
    with _refusals(sale_id):
        try:
            return await commands.adjust(
                valkey, partition=PARTITION, epoch=epoch, sale_id=sale_id, sku=index, to=to, expect=expect
            )
        except commands.SupplyMismatch as fault:
            raise CommandRefused(f"{sku}: {fault}; expected {expect}") from None
        except commands.BelowTaken as fault:
            raise CommandRefused(f"{sku}: {fault}, so the supply can't be {to}") from None


async def suspend(valkey: redis.asyncio.Redis, sale_id: str, sku: str) -> bool:
    """Takes the SKU out of the sale; False where it was out. Raises CommandRefused."""
    index = await _index(valkey, sale_id, sku)
    epoch = await _verified_epoch(valkey)
    with _refusals(sale_id):
        return await commands.suspend(valkey, partition=PARTITION, epoch=epoch, sale_id=sale_id, sku=index)


async def unsuspend(valkey: redis.asyncio.Redis, sale_id: str, sku: str) -> bool:
    """Puts the SKU back into the sale; False where it was in. Raises CommandRefused."""
    index = await _index(valkey, sale_id, sku)
    epoch = await _verified_epoch(valkey)
    with _refusals(sale_id):
        return await commands.unsuspend(valkey, partition=PARTITION, epoch=epoch, sale_id=sale_id, sku=index)


async def list_sales(valkey: redis.asyncio.Redis) -> list[SaleView]:
    """Every sale that Valkey knows, by number."""
    return [SaleView(sale, await _state(valkey, sale)) for sale in (await _in_force(valkey)).sales]


async def show(valkey: redis.asyncio.Redis, sale_id: str) -> SaleView:
    """One sale. Raises CommandRefused where Valkey has none of that id."""
    sale = _sale(await _in_force(valkey), sale_id)
    return SaleView(sale, await _state(valkey, sale))


@asynccontextmanager
async def _catalogue_change(ledger: Connection) -> AsyncIterator[Catalogue]:
    """The newest catalogue, in a transaction that no other catalogue change overlaps."""
    async with ledger.transaction():
        await sales.lock_catalogue(ledger)
        newest = await sales.newest_catalogue(ledger)
        yield Catalogue(0, ()) if newest is None else Catalogue.decode(newest[1])


async def _store(ledger: Connection, catalogue: Catalogue) -> None:
    await sales.insert_catalogue(ledger, catalogue.version, catalogue.encode())


async def _carry_over(valkey: redis.asyncio.Redis, ledger: Connection) -> None:
    """Brings Valkey to the ledger's newest catalogue. Stock and window first: when the version is in force, every order
    that it prices can be decided. What another command stored in between is carried over with it."""
    async with _catalogue_change(ledger) as catalogue:
        if not catalogue.sales:
            return
        epoch = await _verified_epoch(valkey)
        with _refusals():
            for sale in catalogue.sales:
                await commands.create_sale(
                    valkey,
                    partition=PARTITION,
                    epoch=epoch,
                    sale_id=sale.id,
                    number=sale.number,
                    opens_at_ms=sale.opens_at_ms,
                    closes_at_ms=sale.closes_at_ms,
                    supply=[offer.stock for offer in sale.offers],
                    guarantees=guarantees(catalogue.world, sale),
                )
            await commands.publish(valkey, partition=PARTITION, epoch=epoch, catalogue=catalogue)


def in_present_world(catalogue: Catalogue) -> Catalogue:
    """The catalogue in the world that this release of the engine knows: its rules, lanes and channels."""
    world = packaged()
    return catalogue if catalogue.world == world else replace(catalogue, world=world)


def guarantees(world: World, sale: Sale) -> list[tuple[int, int, int]]:
    """The sale's guarantees as the reservation knows them: (offer index, channel number, units). Raises CommandRefused
    where a channel is none of the world's, or more is guaranteed than there is."""
    found = []
    for offer in sale.offers:
        for name, units in offer.guarantees.items():
            channel = world.channel(name)
            if channel is None:
                known = ", ".join(each.id for each in world.channels) or "none"
                raise CommandRefused(
                    f"{offer.sku}: there is no channel {name!r} to guarantee units to; there are: {known}"
                )
            found.append((offer.index, channel.number, units))
        guaranteed = sum(offer.guarantees.values())
        if guaranteed > offer.stock:
            raise CommandRefused(
                f"{offer.sku}: {guaranteed} units are guaranteed to channels, the stock is {offer.stock}"
            )
    return found


async def _set_status(valkey: redis.asyncio.Redis, sale_id: str, action: StatusAction) -> SaleWindow:
    _sale(await _in_force(valkey), sale_id)
    epoch = await _verified_epoch(valkey)
    with _refusals(sale_id):
        return await commands.set_status(valkey, partition=PARTITION, epoch=epoch, sale_id=sale_id, action=action)


async def _verified_epoch(valkey: redis.asyncio.Redis) -> int:
    """The partition's epoch, where this very Valkey was verified against the ledger: fronts ask the same before
    an order. So pause, close, stock and suspend work while the ledger is away."""
    partition = await commands.read_partition(valkey, PARTITION)
    if partition is None or partition.run_id != await server.run_id(valkey):
        raise CommandRefused("Valkey is not verified against the ledger yet: is a worker running, and the ledger up?")
    return partition.epoch


@contextmanager
def _stored(sale_id: str) -> Iterator[None]:
    """Whatever keeps the ledger's word from Valkey now, as a line that says that the ledger has it."""
    try:
        yield
    except (CommandRefused, RedisError) as fault:
        said = str(fault) or type(fault).__name__
        raise CommandRefused(
            f"sale {sale_id} is stored; Valkey gets it at the next `sale create`, `update` or `open`: {said}"
        ) from fault


@contextmanager
def _refusals(sale_id: str = "") -> Iterator[None]:
    """A script's refusal as one line for the one who gave the command."""
    try:
        yield
    except commands.SaleClosed:
        raise CommandRefused(f"sale {sale_id} is closed, and closing is final") from None
    except commands.SaleEnded:
        raise CommandRefused(f"sale {sale_id} is over: `flashsale sale update` may give it a later closes_at") from None
    except commands.UnknownSale:
        raise CommandRefused(f"Valkey has no sale {sale_id}: `flashsale sale create` its file again") from None
    except commands.Refusal as fault:
        raise CommandRefused(str(fault)) from None


async def _in_force(valkey: redis.asyncio.Redis) -> Catalogue:
    return await commands.load_catalogue(valkey, partition=PARTITION) or Catalogue(0, ())


async def _index(valkey: redis.asyncio.Redis, sale_id: str, sku: str) -> int:
    offer = _sale(await _in_force(valkey), sale_id).by_sku.get(sku)
    if offer is None:
        raise CommandRefused(f"sale {sale_id} has no SKU {sku}")
    return offer.index


async def _state(valkey: redis.asyncio.Redis, sale: Sale) -> SaleState:
    state = await commands.read_state(valkey, sale.id, PARTITION)
    if state is None:
        raise CommandRefused(f"Valkey has no sale {sale.id}: `flashsale sale create` its file again")
    return state


def _stored_file(row: sales.SaleRow) -> SaleFile:
    """The file that the sale was made or last updated from, under the id that it was given."""
    return parse_sale_file(row.file, f"{row.id}.toml").with_id(row.id)


def _sale(catalogue: Catalogue, sale_id: str) -> Sale:
    sale = catalogue.sale(sale_id)
    if sale is None:
        known = ", ".join(sale.id for sale in catalogue.sales[:KNOWN_SALES_NAMED]) or "none"
        raise CommandRefused(f"there is no sale {sale_id!r}; there are: {known}")
    return sale
