"""What a payment provider tells, in the house's own words: facts about intents, refunds and disputes.

A fact may come from a webhook, a poll or the answer to a call, late, twice or in any order: it says what the provider
knew at some moment. The state's rank, never a time, decides which of two facts is the newer one.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class IntentState(StrEnum):
    """What the provider last said of an order's payment intent."""

    OPEN = "open"  # waits for the shopper
    FAILED = "failed"  # declined; the shopper may try again
    PROCESSING = "processing"  # the wallet or bank has it
    AUTHORISED = "authorised"  # the card's money is reserved, not yet taken
    CAPTURED = "captured"
    CLOSED = "closed"  # cancelled at the provider: nobody can pay it any more, what was authorised is released


RANK: Mapping[IntentState, int] = {
    IntentState.OPEN: 0,
    IntentState.FAILED: 0,
    IntentState.PROCESSING: 1,
    IntentState.AUTHORISED: 2,
    IntentState.CAPTURED: 3,
    IntentState.CLOSED: 3,  # an intent that was captured can't be cancelled, nor the other way round
}
"""A fact changes the payment only if its rank is above what is known. A decline is told apart by its `attempt`."""


class RefundState(StrEnum):
    """What became of a refund; a succeeded one may still fail later."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


REFUND_RANK: Mapping[RefundState, int] = {RefundState.PENDING: 0, RefundState.SUCCEEDED: 1, RefundState.FAILED: 2}


class DisputeState(StrEnum):
    """A dispute takes the money away until it is decided."""

    OPEN = "open"
    WON = "won"
    LOST = "lost"


class PaymentFact(NamedTuple):
    """An intent at some moment; amounts in minor units of the order's currency. `authorised` is all that was ever
    authorised (for a wallet what was captured), `attempt` names the charge that a decline is about, `source` the
    provider's event, or `poll` or `call`. `currency`: None where the source does not say."""

    order_id: str
    provider_id: str
    state: IntentState
    method: str | None
    authorised: int
    captured: int
    capture_before_ms: int | None
    failure: str | None
    attempt: str | None
    source: str
    currency: str | None = None


class RefundFact(NamedTuple):
    """A refund at some moment. `refund_id` is ours (it travels as metadata), `provider_id` the provider's."""

    order_id: str
    refund_id: str
    provider_id: str
    state: RefundState
    amount: int
    failure: str | None
    source: str


class DisputeFact(NamedTuple):
    """A dispute at some moment. `provider_id` is the intent's."""

    provider_id: str
    dispute_id: str
    state: DisputeState
    amount: int
    source: str


Fact = PaymentFact | RefundFact | DisputeFact
