"""What the audit and the rebuild read out of movements: when a sale was open, what was suspended, how it stands."""

from flashsale.audit.stock import FOR_EVER, open_windows, suspended_spans
from flashsale.ledger.movements import MovementRow
from flashsale.recovery import replayed


def test_a_sale_is_open_between_the_movements_that_say_so() -> None:
    window = {"opens_at": 10, "closes_at": 90}
    rows = [
        ("create", (1, 0), window),
        ("suspend", (2, 0), {}),
        ("status", (20, 0), {"status": "paused", **window}),
        ("create", (25, 0), window),  # SKUs added during a pause do not end it
        ("status", (30, 1), {"status": "open", **window}),
        ("status", (40, 0), {"status": "closed", "opens_at": 10, "closes_at": 40}),
    ]
    assert open_windows(rows) == [(1, 0, 20, 0, 10, 90), (30, 1, 40, 0, 10, 90)]
    assert open_windows(rows[:1]) == [(1, 0, FOR_EVER, 0, 10, 90)]
    assert open_windows([]) == []


def test_a_suspension_lasts_until_it_is_taken_back() -> None:
    rows = [
        ("suspend", 3, (1, 0)),
        ("suspend", 4, (2, 0)),
        ("status", None, (3, 0)),
        ("unsuspend", 3, (5, 1)),
        ("unsuspend", 9, (6, 0)),
    ]
    assert suspended_spans(rows) == [(3, 1, 0, 5, 1), (4, 2, 0, FOR_EVER, 0)]


def test_the_last_movement_of_each_kind_says_how_a_sale_stands() -> None:
    def row(at: int, kind: str, sku: int | None = None, detail: str = "{}") -> MovementRow:
        return MovementRow(0, at, 0, kind, 7, sku, None, None, detail)

    state = replayed(
        [
            row(1, "create", detail='{"opens_at": 1, "closes_at": 9}'),
            row(2, "suspend", 5),
            row(3, "suspend", 6),
            row(4, "unsuspend", 5),
            row(5, "status", detail='{"status": "paused", "opens_at": 2, "closes_at": 9}'),
            row(6, "create", detail='{"opens_at": 3, "closes_at": 8}'),
        ]
    )[7]
    assert (state.status, state.opens_at, state.closes_at, state.suspended) == ("paused", 3, 8, {6})
