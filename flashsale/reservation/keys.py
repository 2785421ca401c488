"""The name of every key in Valkey, made here alone.

A key of a partition begins with its hash tag, so that a script's keys lie in one slot whatever the sale. What a key
holds is said at its function; which script writes which key is said in each script's head.
"""

CATALOGUE = "catalogue"
"""Hash: catalogue version (decimal) -> document (`Catalogue.encode()`). The version in force stands in each partition's
hash; every version that an unsettled sale used stays, because a replay is repriced at its own."""

PAYMENT_EVENTS = "payment-events"
"""Stream: the payment provider's webhooks, as they came, until they are applied. Of no partition, because what an event
is about is known only when it is read; a rebuild leaves it as it is."""

PAYMENT_EVENTS_STATE = "{payment-events}:state"
"""Hash, in the slot of the stream: written and trimmed (bytes ever put into that stream, and of these applied and cut
off), last (its newest entry's id)."""

WORKERS = "workers"
"""Hash: a worker's name -> its sign of life (workers.py). Of no partition: a rebuild leaves it, it ends by itself."""


def tag(partition: int) -> str:
    """The hash tag that every key of `partition` carries."""
    return f"{{p{partition:02d}}}"


def partition(partition: int) -> str:
    """Hash: epoch, version (catalogue version in force), run_id (verified against the ledger), written and trimmed
    (journal bytes ever added, and of these already in the ledger and cut off)."""
    return f"{tag(partition)}:partition"


def rebuilding(partition: int) -> str:
    """Hash: the partition's own as it was when a rebuild began (it is renamed to this: no script runs any more), phase
    (begun, taken: the ledger has all that only Valkey knew) and told ("1": by hand). Gone when the rebuild is whole."""
    return f"{tag(partition)}:rebuilding"


def journal(partition: int) -> str:
    """Stream: every movement of stock and every change of state of this partition, in the order of their happening."""
    return f"{tag(partition)}:journal"


def state(partition: int, sale_id: str) -> str:
    """Hash: number, status (open, paused, closed), opens_at and closes_at (ms), suspended (",3,17,": SKU indices)."""
    return f"{tag(partition)}:{sale_id}:state"


def stock(partition: int, sale_id: str) -> str:
    """Hash: SKU index -> available units of the common pool; "index.channel" (numbers) -> what is left of the channel's
    guarantee of that SKU."""
    return f"{tag(partition)}:{sale_id}:stock"


def supply(partition: int, sale_id: str) -> str:
    """Hash: SKU index -> units ever given to this sale; supply = available + taken."""
    return f"{tag(partition)}:{sale_id}:supply"


def quota(partition: int, sale_id: str) -> str:
    """Hash: shopper hash (10 bytes) + SKU index (2 bytes) -> units taken."""
    return f"{tag(partition)}:{sale_id}:quota"


def holds(partition: int, sale_id: str) -> str:
    """Hash: an order id's last 12 bytes -> its hold (see holds.py). A used id stays until the sale is settled."""
    return f"{tag(partition)}:{sale_id}:holds"


def returns(partition: int, sale_id: str) -> str:
    """Hash: SKU index -> ms at which units of open holds may come back, the earliest; no field: none may. Told by the
    ledger now and then, for what a sold-out order is answered; nothing else relies on it."""
    return f"{tag(partition)}:{sale_id}:returns"


def limits(partition: int) -> str:
    """Hash, of no sale: what is used of limits that the catalogue or the law sets. A field has 13 bytes (limits.py): a
    lane's dispatch day -> parcels held, or an identity's year -> minor units imported."""
    return f"{tag(partition)}:limits"


def grants(partition: int) -> str:
    """Hash, of no sale: recipient (10 bytes) + agent (10 bytes), as identity.person_hash makes them -> the grant's id.
    While it is there the agent may order for the recipient."""
    return f"{tag(partition)}:grants"
