"""The life of an order after its acceptance: the only functions that change one, PostgreSQL the referee among them.

Each is called in a transaction of its caller's and writes all that must follow in it: the guarded update, the history,
what Valkey has to be told (outbox) and what the provider has to be asked (payment.todo, refunds and their jobs). What
is not possible is refused with a problem (flashsale/errors.py), nothing changed.
"""

from flashsale.ledger.life.collected import pay_collected as pay_collected
from flashsale.ledger.life.facts import Applied as Applied
from flashsale.ledger.life.facts import apply_facts as apply_facts
from flashsale.ledger.life.returns import decide_return as decide_return
from flashsale.ledger.life.returns import receive_return as receive_return
from flashsale.ledger.life.returns import request_return as request_return
from flashsale.ledger.life.steps import begin_payment as begin_payment
from flashsale.ledger.life.steps import cancel as cancel
from flashsale.ledger.life.steps import capture_before_deadline as capture_before_deadline
from flashsale.ledger.life.steps import deliver as deliver
from flashsale.ledger.life.steps import extend as extend
from flashsale.ledger.life.steps import refund_goodwill as refund_goodwill
from flashsale.ledger.life.steps import ship as ship
from flashsale.ledger.life.sweeps import Swept as Swept
from flashsale.ledger.life.sweeps import expire as expire
from flashsale.ledger.life.sweeps import settle_again as settle_again
