"""Valkey and ledger compared, and Valkey built again from ledger and journal where it is not as the ledger knows it."""

from flashsale.recovery.aside import SET_ASIDE as SET_ASIDE
from flashsale.recovery.by_hand import Recovered as Recovered
from flashsale.recovery.by_hand import recover as recover
from flashsale.recovery.guard import Guard as Guard
from flashsale.recovery.verdict import LOST as LOST
from flashsale.recovery.verdict import last_entry as last_entry
from flashsale.recovery.writing import channel_numbers as channel_numbers
from flashsale.recovery.writing import limited_lines as limited_lines
from flashsale.recovery.writing import replayed as replayed
