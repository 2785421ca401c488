"""What the engine asks of a payment provider, whoever it is: one small interface and its two kinds of failure.

Every call may be repeated: the provider is told the same key for the same thing, so a repetition changes nothing.
Amounts are minor units after ISO 4217; a provider with digits of its own converts behind this interface.
"""

from collections.abc import AsyncIterator
from enum import Enum
from typing import Final, Literal, NamedTuple, Protocol

from flashsale.sale.payment import PaymentFact, RefundFact
from flashsale.sale.payment_methods import offered


class ProviderAway(Exception):
    """No answer, or one that decides nothing (time-out, lost connection, 5xx, 429): the outcome is unknown. Ask again
    with the same arguments."""


class ProviderRefused(Exception):
    """The provider decided against it: the same call gets the same answer. `code` is the provider's own word."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class _Foreign(Enum):
    EVENT = "foreign"


FOREIGN: Final = _Foreign.EVENT
"""What `facts_of` says of an event that is the provider's, but about no order of ours (paid by hand, another shop)."""

ForeignEvent = Literal[_Foreign.EVENT]  # its type


class Payable(NamedTuple):
    """What is to be paid for an order. `methods` as sale/payment_methods.py names them, `expires_ms` when the hold
    ends, `return_url` where the shopper goes afterwards."""

    order_id: str
    amount: int
    currency: str
    methods: tuple[str, ...]
    return_url: str | None
    expires_ms: int
    description: str

    @classmethod
    def of_order(
        cls, order_id: str, market: str, amount: int, currency: str, return_url: str | None, expires_ms: int
    ) -> "Payable":
        """An order of a market, in the words that every attempt to open it uses: one key is good for the same ones."""
        return cls(order_id, amount, currency, offered(market), return_url, expires_ms, f"Order {order_id}")


class Opened(NamedTuple):
    """The provider's object for an order. `provider_id` (the intent) is None until the shopper begins to pay, with a
    provider that makes it only then. `pay_url` is the hosted page, where every method of the order is offered."""

    session_id: str
    provider_id: str | None
    pay_url: str


class ForeignRefund(NamedTuple):
    """A refund that the engine did not ask for: made by hand at the provider. `intent_id` says of which payment."""

    provider_id: str
    intent_id: str
    failed: bool


class PaymentProvider(Protocol):
    """One account with a provider. Every method raises ProviderAway or ProviderRefused."""

    name: str

    async def open(self, payable: Payable, created_ms: int) -> Opened:
        """The order's one payment object, made if it is not there. `created_ms` is when it was asked for first: the
        provider forgets keys, so an old attempt is looked for before it is repeated."""
        ...

    async def wallet(self, opened: Opened, method: str, return_url: str, key: str) -> str:
        """Where the shopper approves a payment with this wallet. The hosted page where the wallet can't be entered
        directly. `key` is the same for the same attempt."""
        ...

    async def capture(self, order_id: str, provider_id: str, amount: int) -> PaymentFact:
        """Take `amount` of what is authorised and release the rest. Once: a captured intent is told as it is."""
        ...

    async def close(self, order_id: str, session_id: str, provider_id: str | None) -> PaymentFact:
        """See to it that nobody pays any more. If the payer was faster, the fact says so and nothing was changed."""
        ...

    async def release(self, order_id: str, provider_id: str) -> PaymentFact:
        """Give back what is authorised and not captured. If it was captured already, the fact says so."""
        ...

    async def look(self, order_id: str, session_id: str, provider_id: str | None) -> PaymentFact:
        """What became of it."""
        ...

    async def refund(self, refund_id: str, order_id: str, provider_id: str, amount: int, created_ms: int) -> RefundFact:
        """Give captured money back. The same `refund_id` moves money once, whenever it is repeated; `created_ms` is
        when it was asked for first."""
        ...

    async def look_refund(self, refund_id: str, provider_id: str) -> RefundFact | None:
        """What became of a refund of that intent; None: the provider has none of that id of ours."""
        ...

    def list_intents(self, since_ms: int) -> AsyncIterator[PaymentFact]:
        """Every intent of ours that was made since then: for reconciliation."""
        ...

    def list_refunds(self, since_ms: int) -> AsyncIterator[RefundFact | ForeignRefund]:
        """Every refund that was made since then."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
