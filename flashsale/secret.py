"""The key of the bearer tokens: given in FLASHSALE_SECRET, else the one kept in DATA_DIR/secret (0600).

Its UTF-8 bytes are the key, underived. Only `flashsale up` makes or keeps one; everybody else refuses to go without.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from flashsale.settings import Settings, too_short

SECRET_BYTES = 32  # of randomness, written as URL-safe text: what HS256 asks for at least


class NoSecret(Exception):
    """There is none; one line that says what to do."""


def path(data_dir: Path) -> Path:
    """Where the secret is kept."""
    return data_dir / "secret"


def find(settings: Settings) -> str:
    """The secret given, else the one kept. Raises NoSecret."""
    if settings.secret is not None:
        return settings.secret.get_secret_value()
    place = path(settings.data_dir)
    try:
        kept = place.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as fault:
        raise NoSecret(f"no secret ({place}: {fault.strerror}): set FLASHSALE_SECRET or run `flashsale up`") from fault
    if short := too_short(kept):
        raise NoSecret(f"{place}: {short}; put it there, or set FLASHSALE_SECRET: tokens made with the old one end")
    return kept


def find_or_make(settings: Settings) -> str:
    """The secret given, else the one kept, else a new one; kept for every later start."""
    place = path(settings.data_dir)
    if settings.secret is None and place.exists():
        return find(settings)
    secret = find(settings) if settings.secret is not None else secrets.token_urlsafe(SECRET_BYTES)
    if place.exists() and place.read_text(encoding="utf-8") == secret:
        return secret
    new = place.with_name("secret.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    new.rename(place)
    return secret
