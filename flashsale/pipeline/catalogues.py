"""What the workers need to know of sales and of the catalogue's versions, read from the ledger once."""

from __future__ import annotations

from dataclasses import dataclass

from flashsale.ledger import sales
from flashsale.ledger.pool import Connection
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.identity import SaleIdentity

VERSIONS_MAX = 256  # quotas of as many versions are kept: a sale is rarely updated more often


@dataclass(frozen=True, slots=True)
class KnownSale:
    """A sale's id and the hashes of its shoppers."""

    id: str
    identity: SaleIdentity


class Catalogues:
    """Sales and versions never change once they are there: what was read stays true."""

    def __init__(self, partition: int = 0) -> None:
        self._partition = partition
        self._sales: dict[int, KnownSale] = {}
        self._quotas: dict[int, dict[tuple[int, int], int]] = {}
        self._holds_ms: set[int] = set()
        self._holds_upto = 0
        self._present: Catalogue | None = None

    async def sale(self, connection: Connection, number: int) -> KnownSale:
        """The sale of that number. Raises LookupError where there is none."""
        if number not in self._sales:
            for row in await sales.all_sales(connection):
                identity = SaleIdentity(self._partition, row.number, row.key)
                self._sales.setdefault(row.number, KnownSale(row.id, identity))
        if number not in self._sales:
            raise LookupError(f"there is no sale number {number}")
        return self._sales[number]

    async def quotas(self, connection: Connection, version: int) -> dict[tuple[int, int], int]:
        """The quotas by sale number and offer index, of the offers that had one at that version of the catalogue.
        Raises LookupError where there is no such version."""
        if version not in self._quotas:
            document = await sales.catalogue(connection, version)
            if document is None:
                raise LookupError(f"there is no version {version} of the catalogue")
            if len(self._quotas) >= VERSIONS_MAX:
                self._quotas.pop(next(iter(self._quotas)))
            self._quotas[version] = {
                (sale.number, offer.index): offer.quota
                for sale in Catalogue.decode(document).sales
                for offer in sale.offers
                if offer.quota
            }
        return self._quotas[version]

    async def present(self, connection: Connection) -> Catalogue:
        """The newest catalogue. Raises LookupError where there is none."""
        version = await sales.newest_version(connection)
        if self._present is None or self._present.version != version:
            document = await sales.catalogue(connection, version)
            if document is None:
                raise LookupError("there is no catalogue")
            self._present = Catalogue.decode(document)
        return self._present

    async def holds_ms(self, connection: Connection) -> list[int]:
        """Every length that a hold may have, extended or not, in any sale at any version; ascending."""
        for version, document in (await sales.catalogues_after(connection, self._holds_upto)).items():
            for sale in Catalogue.decode(document).sales:
                self._holds_ms |= {sale.hold_ms, sale.hold_ms + sale.extension_ms}
            self._holds_upto = max(self._holds_upto, version)
        return sorted(self._holds_ms)
