"""SKUs that a catalogue does not give, or gives twice: made of what the row says, the same at every import."""

from __future__ import annotations

import re
import unicodedata
from hashlib import blake2s

from flashsale.sale.products.product import Options

SKU_MAX = 64
_DIGEST_DIGITS = 10  # 40 bits: among a million variants of one merchant two agree with a chance below one half
_STEM_MAX = SKU_MAX - _DIGEST_DIGITS - 1
_PRINTABLE = re.compile(r"[!-~]{1,64}")
_OTHER = re.compile(r"[^A-Za-z0-9._-]+")


def is_sku(text: str) -> bool:
    """Whether a SKU can be kept as it stands: 1 to 64 printable ASCII characters without spaces."""
    return _PRINTABLE.fullmatch(text) is not None


def of_variant(handle: str, options: Options) -> str:
    """The SKU of a variant that has none."""
    return _named(" ".join([handle, *(value for _, value in options)]), handle, options)


def of_repeated(sku: str, handle: str, options: Options) -> str:
    """The SKU of a variant whose own one is another's."""
    return _named(sku, handle, options)


def rewritten(sku: str) -> str:
    """A SKU for one that has spaces, other characters, or too many of them."""
    stem = _stem(sku)
    return f"{stem}-{_digest(sku)}" if stem else _digest(sku)


def _named(text: str, handle: str, options: Options) -> str:
    stem, digest = _stem(text), _digest(handle, *(part for option in options for part in option))
    return f"{stem}-{digest}" if stem else digest


def _stem(text: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _OTHER.sub("-", ascii_text)[:_STEM_MAX].strip("-._")


def _digest(*parts: str) -> str:
    return blake2s("\0".join(parts).encode(), digest_size=_DIGEST_DIGITS // 2).hexdigest()
