"""Numbers as merchants write them: 1234.50, 1234,50, 1.234,50, 1,234.50. What may be read in two ways is refused.

`1,234` is one thing in Singapore and another in Berlin, a thousand times apart: it is never guessed.
"""

from __future__ import annotations

import re
from decimal import Decimal

DIGITS_MAX = 18

_PLAIN = re.compile(r"-?[0-9]+(?:\.(?:[0-9]{1,2}|[0-9]{4,}))?", re.ASCII)
_SHAPE = re.compile(r"-?[0-9][0-9.,]*", re.ASCII)
_SPACES = re.compile("(?<=[0-9])[ \u00a0\u202f'\u2019](?=[0-9]{3}(?:[^0-9]|$))")


class NotANumber(ValueError):
    """The text is no number, or more than one. The message says why, and how to write it."""


def decimal(text: str, mark: str | None = None) -> Decimal:
    """The number in the text; `mark`: the file's decimal mark, "." or ",", where it is known. Raises NotANumber."""
    if _PLAIN.fullmatch(text) and mark is None and len(text) <= DIGITS_MAX:
        return Decimal(text)
    joined = _SPACES.sub("", text.strip())
    if not _SHAPE.fullmatch(joined) or sum(map(str.isdigit, joined)) > DIGITS_MAX:
        raise NotANumber(f"{text[:40]!r} is no number such as 1234.50 or 1234,50")
    last = max(joined.rfind("."), joined.rfind(","))
    if last < 0:
        return Decimal(joined)
    sign = joined[last]
    other = "," if sign == "." else "."
    if mark is None:
        mark = _mark(joined, sign, other, last, text)
    if joined.endswith(sign):
        raise NotANumber(f"{text[:40]!r} ends with {sign!r}: digits are missing")
    if mark == sign:
        whole, decimals = joined[:last], joined[last + 1 :]
    else:
        whole, decimals = joined, ""
    grouping = "." if mark == "," else ","
    return Decimal(_ungrouped(whole, grouping, text) + (f".{decimals}" if decimals else ""))


def _mark(joined: str, sign: str, other: str, last: int, text: str) -> str:
    """The decimal mark that the number itself shows. Raises NotANumber where it shows none."""
    if other in joined:
        return sign  # what comes last parts the decimals
    if joined.count(sign) > 1:
        return other  # 1.234.567: groups
    whole, decimals = joined[:last].lstrip("-"), joined[last + 1 :]
    if len(decimals) == 3 and len(whole) <= 3 and whole != "0":
        raise NotANumber(
            f"{text[:40]!r} may be {whole}{decimals} or {whole} and {decimals} thousandths:"
            f" write {whole}{decimals} or {whole}{sign}{decimals}0, or say the file's decimal mark"
        )
    return sign


def _ungrouped(whole: str, grouping: str, text: str) -> str:
    """The digits without the signs between groups of three."""
    first, *groups = whole.split(grouping)
    if groups and (not 1 <= len(first.lstrip("-")) <= 3 or any(len(group) != 3 for group in groups)):
        raise NotANumber(f"{text[:40]!r} has groups that are not of three digits")
    joined = first + "".join(groups)
    if not joined.lstrip("-").isdigit():
        raise NotANumber(f"{text[:40]!r} has more than one decimal mark")
    return joined
