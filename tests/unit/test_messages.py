"""Every text of the engine is in every language, as it stands in the sources now, and compiled."""

from __future__ import annotations

import gettext
from itertools import combinations
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.mofile import write_mo
from babel.messages.pofile import write_po

from flashsale.errors import PROBLEMS
from flashsale.languages import ENGLISH, FOLDER, LANGUAGES, TRANSLATED, say
from flashsale.sale.next_step import Situation, next_step
from scripts import messages
from tests.unit.test_next_step import EVERY


@pytest.mark.parametrize("language", TRANSLATED)
def test_no_language_misses_a_text(language: str) -> None:
    assert list(messages.faults(language)) == []


def test_every_text_that_is_said_is_found_in_the_sources() -> None:
    """Whatever the extraction overlooks would be English in every language, and nobody told."""
    found = messages.texts()
    for problem in PROBLEMS.values():
        assert problem.title in found
        assert problem.next_step in found
    assert {next_step(now).why for now in EVERY} <= set(found)
    assert "Pay with {name}" in found


def test_each_language_says_it_in_words_of_its_own() -> None:
    found = list(messages.texts())
    for one, other in combinations(LANGUAGES, 2):  # no language's file is a copy of another's
        same = [text for text in found if say(text, one) == say(text, other)]
        assert len(same) < len(found) / 10, (one, other, same)
    why = next_step(Situation(EVERY[0].status)).why
    assert say(why, "vi") != why


def test_what_is_no_text_of_the_engine_stays() -> None:
    assert say("There is no sale 'x'.", "th") == "There is no sale 'x'."
    assert say("", "th") == ""  # gettext's empty text is the file's own head
    assert say("Sold out", ENGLISH) == "Sold out"


@pytest.mark.parametrize(
    ("text", "translation", "fault"),
    [
        ("Pay with {name}", "Bayar dengan {nama}", "placeholders"),
        ("Pay with {name}", "Bayar", "placeholders"),
        ("Ask for at most `refundable`.", "Mintalah paling banyak `dana`.", "code"),
        ("GET /v1/sales lists the sales.", "GET /v1/penjualan menampilkan daftar.", "paths"),
        ("At most 256 KiB.", "Paling besar 265 KiB.", "numbers"),
        ("Pay with {name}", "Bayar dengan {name}", ""),
        ("GET /v1/orders/{id} shows `it`; 20 lines.", "20 baris: GET /v1/orders/{id} menampilkan `it`.", ""),
    ],
)
def test_a_translation_that_loses_a_name_for_programs_is_a_fault(text: str, translation: str, fault: str) -> None:
    found = messages.mismatch(Message(text, string=translation))
    assert fault in found
    assert bool(fault) == bool(found)


@pytest.mark.parametrize("damage", ["missing", "empty", "fuzzy", "surplus", "stale", "uncompiled"])
def test_a_fault_in_a_file_is_told(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "FOLDER", tmp_path)
    wanted = list(messages.texts())
    catalog = Catalog(locale="th", domain=messages.DOMAIN)
    for text in wanted[damage == "missing" :]:
        catalog.add(text, say(text, "th"))
    if damage == "surplus":
        catalog.add("Nobody says this any more.", "ไม่มีใครพูดแบบนี้อีก")
    if damage == "empty":
        catalog[wanted[0]].string = ""
    if damage == "fuzzy":
        catalog[wanted[0]].flags.add("fuzzy")
    messages.po_file("th").parent.mkdir(parents=True)
    if damage != "uncompiled":
        with messages.mo_file("th").open("wb") as file:
            write_mo(file, catalog)
    if damage == "stale":
        catalog[wanted[0]].string = "ใหม่กว่า"
    with messages.po_file("th").open("wb") as file:
        write_po(file, catalog)
    assert len(list(messages.faults("th"))) == 1


def test_an_update_keeps_what_is_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "FOLDER", tmp_path)
    first, second = list(messages.texts())[:2]
    messages.update()
    catalog = messages.read("vi")
    assert catalog[first].string == ""
    catalog[first].string = "một"
    with messages.po_file("vi").open("wb") as file:
        write_po(file, catalog)
    messages.update()
    assert (messages.read("vi")[first].string, messages.read("vi")[second].string) == ("một", "")


def test_the_compiled_texts_lie_where_gettext_looks() -> None:
    for language in TRANSLATED:
        path = gettext.find(messages.DOMAIN, FOLDER, [language.replace("-", "_")])
        assert path == str(messages.mo_file(language))
