"""Times as a merchant writes them: local, in the merchant's own zone. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def local_time_ms(text: str, time_zone: str) -> int:
    """A time as a merchant writes it, in ms: with a zone of its own, else the merchant's. Raises ValueError, whose text
    says what is wrong: also for what the clock shows twice or never, where summer time begins or ends."""
    try:
        written = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time such as 2026-11-11T00:00") from None
    if not 1970 < written.year < 9999:
        raise ValueError(f"{text!r} is not a time of the years 1971 to 9998")
    if written.tzinfo is None:
        zone = ZoneInfo(time_zone)
        first, second = written.replace(tzinfo=zone, fold=0), written.replace(tzinfo=zone, fold=1)
        if first.utcoffset() != second.utcoffset():
            # Of a time that is skipped neither reading comes back from UTC as it was written.
            skipped = first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != written
            raise ValueError(
                f"{text} {'does not exist' if skipped else 'comes twice'} in {time_zone}, where the clocks change:"
                " write it with its offset, such as +02:00"
            )
        written = first
    return (written - _EPOCH) // timedelta(milliseconds=1)
