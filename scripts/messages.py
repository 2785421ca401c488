"""The engine's texts in every language: finds them in the sources, compares, compiles.

    .venv/bin/python scripts/messages.py update     the .po files name every text of the sources, new ones untranslated
    .venv/bin/python scripts/messages.py compile    the .mo files say what the .po files say
    .venv/bin/python scripts/messages.py check      exit 1, with a line for each fault, where a text is missing

A text's place in the sources is the argument of one of a few calls (TEXTS); its English is its name.
"""

from __future__ import annotations

import gettext
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from flashsale.languages import DOMAIN, FOLDER, TRANSLATED

PACKAGE = FOLDER.parent
# Which argument, counted from 1, of which call in which file is a text.
TEXTS = (
    ("errors.py", "Problem", 2),
    ("errors.py", "Problem", 3),
    ("sale/next_step.py", "Step", 2),
    ("partners/**/pages.py", "say", 1),
)


def texts() -> dict[str, list[tuple[str, int]]]:
    """Every text of the sources, in their order, with the file and line of each place."""
    found: dict[str, list[tuple[str, int]]] = {}
    for where, call, place in TEXTS:
        for path in sorted(PACKAGE.glob(where)):
            name = str(path.relative_to(PACKAGE.parent))
            with path.open("rb") as source:
                for line, text, _, _ in extract("python", source, {call: (place,)}):
                    if isinstance(text, str) and text:
                        found.setdefault(text, []).append((name, line))
    return found


def po_file(language: str) -> Path:
    return FOLDER / language.replace("-", "_") / "LC_MESSAGES" / f"{DOMAIN}.po"


def mo_file(language: str) -> Path:
    return po_file(language).with_suffix(".mo")


def read(language: str) -> Catalog:
    """The language's texts as its .po has them; empty where there is none yet."""
    try:
        with po_file(language).open("rb") as file:
            return read_po(file, locale=language.replace("-", "_"), domain=DOMAIN)
    except FileNotFoundError:
        return Catalog(locale=language.replace("-", "_"), domain=DOMAIN)


def update() -> None:
    """Writes each .po anew: the sources' texts in their order, with the translations that there are."""
    wanted = texts()
    for language in TRANSLATED:
        old = read(language)
        new = Catalog(
            locale=language.replace("-", "_"),
            domain=DOMAIN,
            header_comment=f"# The engine's texts in {language}. `scripts/messages.py` keeps what is in this file.",
            project=DOMAIN,
            version="1",
            msgid_bugs_address=DOMAIN,
            last_translator=DOMAIN,
            language_team=DOMAIN,
            creation_date=old.creation_date,
            revision_date=old.creation_date,
            fuzzy=False,
        )
        for text in wanted:
            kept = old.get(text)
            new.add(text, str(kept.string) if kept is not None and not kept.fuzzy else "")
        po_file(language).parent.mkdir(parents=True, exist_ok=True)
        with po_file(language).open("wb") as file:
            write_po(file, new, width=120, no_location=True, omit_header=False)


def compile_all() -> None:
    for language in TRANSLATED:
        with mo_file(language).open("wb") as file:
            write_mo(file, read(language))


def faults(language: str) -> Iterator[str]:
    """What is wrong with a language's texts, a line each."""
    wanted = texts()
    catalog = read(language)
    translated = {str(message.id): message for message in catalog if message.id}
    for text, places in wanted.items():
        message = translated.get(text)
        where = f"{language}: {places[0][0]}:{places[0][1]}"
        if message is None or not message.string:
            yield f"{where}: not translated: {text!r}"
        elif message.fuzzy:
            yield f"{where}: fuzzy: {text!r}"
        elif fault := mismatch(message):
            yield f"{where}: {fault}: {text!r}"
    yield from (f"{language}: no text of the sources: {text!r}" for text in translated if text not in wanted)
    try:
        with mo_file(language).open("rb") as file:
            compiled = gettext.GNUTranslations(file)
    except FileNotFoundError:
        yield f"{language}: not compiled"
        return
    for text, message in translated.items():
        if message.string and not message.fuzzy and compiled.gettext(text) != message.string:
            yield f"{language}: the compiled text is another: {text!r}"


def mismatch(message: Message) -> str:
    """What a translation has lost or invented of its text's names for programs; "" where they agree."""
    text, translation = str(message.id), str(message.string)
    for name, parts in (("placeholders", placeholders), ("`code`", code), ("paths", paths), ("numbers", numbers)):
        if sorted(parts(text)) != sorted(parts(translation)):
            return f"its {name} differ"
    return ""


def placeholders(text: str) -> list[str]:
    """The {names} that are filled in, outside of paths and code."""
    bare = "".join(text.split("`")[::2])
    bare = " ".join(word for word in bare.split() if "/" not in word)
    return [name for _, name, _, _ in string.Formatter().parse(bare) if name is not None]


def code(text: str) -> list[str]:
    return text.split("`")[1::2]


def numbers(text: str) -> list[str]:
    return re.findall(r"[0-9]+", text)


def paths(text: str) -> list[str]:
    """The routes named: a / and what follows in ASCII, without the sentence's full stop."""
    found: list[str] = []
    rest = text
    while (at := rest.find("/")) >= 0:
        end = at
        while end < len(rest) and rest[end].isascii() and not rest[end].isspace() and rest[end] not in ",;:)":
            end += 1
        found.append(rest[at:end].rstrip(".?"))
        rest = rest[max(end, at + 1) :]
    return found


def main(words: list[str]) -> int:
    match words:
        case ["update"]:
            update()
        case ["compile"]:
            compile_all()
        case ["check"]:
            found = [fault for language in TRANSLATED for fault in faults(language)]
            print("\n".join(found) or f"{len(texts())} texts in {len(TRANSLATED) + 1} languages")
            return 1 if found else 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
