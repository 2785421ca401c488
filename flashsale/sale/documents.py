"""Numbers of identity documents: whether one is well written, and the identity that it stands for.

The syntax of each country's number is python-stdnum's. Pure. No message ever holds a number.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from hashlib import blake2s

from stdnum.be import nn
from stdnum.br import cpf
from stdnum.cl import rut
from stdnum.cn import ric
from stdnum.es import dni
from stdnum.exceptions import ValidationError
from stdnum.fi import hetu
from stdnum.id import nik
from stdnum.kr import rrn
from stdnum.my import nric
from stdnum.nl import bsn
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.th import pin
from stdnum.tr import tckimlik
from stdnum.za import idnr

IDENTITY_BYTES = 10
NUMBER_MAX = 64  # characters; the longest of these has 18, and people write spaces between them

_VALIDATORS: dict[str, Callable[[str], str]] = {
    "BE": nn.validate,
    "BR": cpf.validate,
    "CL": rut.validate,
    "CN": ric.validate,
    "ES": dni.validate,
    "FI": hetu.validate,
    "ID": nik.validate,
    "KR": rrn.validate,
    "MY": nric.validate,
    "NL": bsn.validate,
    "NO": fodselsnummer.validate,
    "PL": pesel.validate,
    "TH": pin.validate,
    "TR": tckimlik.validate,
    "ZA": idnr.validate,
}
COUNTRIES = tuple(_VALIDATORS)
"""Whose documents are known: personal numbers of which each person has one, and one way to write it."""


def normalised(country: str, number: str) -> str:
    """The number in its one way of writing. Raises ValueError for a country that is not known and a number that is
    none of its documents'."""
    validate = _VALIDATORS.get(country)
    if validate is None:
        raise ValueError(f"documents of these countries are known: {', '.join(COUNTRIES)}")
    text = "".join(unicodedata.normalize("NFKC", number).upper().split())
    try:
        found = validate(text)
    except ValidationError:
        found = ""
    if not found.isascii() or not found:
        raise ValueError(f"not a number of a personal document of {country}")
    return found


def identity_of(key: bytes, country: str, number: str) -> bytes:
    """The IDENTITY_BYTES that stand for a person: a hash of country and normalised number under a key that never
    changes. Without the key nobody can try all numbers through."""
    return blake2s(f"{country}\0{number}".encode(), key=key, digest_size=IDENTITY_BYTES, person=b"document").digest()
