"""A sale as the text of its file, which `parse_sale_file` reads back as the same sale: for what an import changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from flashsale.sale.market import MARKETS
from flashsale.sale.money import format_amount
from flashsale.sale.offer import Offer
from flashsale.sale.salefile import DAY_MS, SaleFile

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def text_of(file: SaleFile) -> str:
    """The sale as TOML, offers in their order."""
    lines = [
        "[sale]",
        f"id = {_text(file.id)}",
        f"name = {_text(file.name)}",
        f"opens_at = {_time(file.opens_at_ms)}",
        f"closes_at = {_time(file.closes_at_ms)}",
        f"hold_seconds = {file.hold_ms // 1000}",
        f"extension_seconds = {file.extension_ms // 1000}",
        f"return_days = {file.return_ms // DAY_MS}",
        f"return_quota = {'true' if file.return_quota else 'false'}",
    ]
    if file.ships_from:
        lines.append(f"ships_from = {_text(file.ships_from)}")
    for offer in file.offers:
        lines += ["", "[[offers]]", *_offer(offer)]
    return "\n".join(lines) + "\n"


def _offer(offer: Offer) -> list[str]:
    prices = {code: format_amount(price, MARKETS[code].currency) for code, price in offer.prices.items()}
    lines = [
        f"sku = {_text(offer.sku)}",
        f"brand = {_text(offer.brand)}",
        f"title = {_table(offer.title)}",
        f"stock = {offer.stock}",
        f"quota = {offer.quota}",
        f"weight_g = {offer.weight_g}",
        f"prices = {_table(prices)}",
    ]
    lines += [f"{name} = {_text(value)}" for name in ("hs_code", "origin", "merchant", "service")
              if (value := getattr(offer, name))]  # fmt: skip
    if offer.size_mm:
        lines.append(f"size_mm = [{', '.join(map(str, offer.size_mm))}]")
    if offer.windows:
        days = {code: f"[{', '.join(_day(at_ms, code) for at_ms in window)}]" for code, window in offer.windows.items()}
        lines.append("windows = { " + ", ".join(f"{_text(code)} = {both}" for code, both in days.items()) + " }")
    if offer.guarantees:
        units = ", ".join(f"{_text(channel)} = {count}" for channel, count in offer.guarantees.items())
        lines.append(f"guarantees = {{ {units} }}")
    return lines


def _table(texts: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{_text(key)} = {_text(value)}" for key, value in texts.items()) + " }"


def _text(text: str) -> str:
    """A TOML string: JSON's, and DEL, which JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _time(at_ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _day(at_ms: int, code: str) -> str:
    """The day that begins then in the market."""
    return (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(ZoneInfo(MARKETS[code].zone)).date().isoformat()
