"""Which of several languages a reader gets: the nearest to the one asked for, after Unicode's CLDR.

Pure: Babel brings the CLDR's tables (which locale inherits from which, which script a language is written in).
Locales are BCP 47 (zh-HK, zh-Hant, en); what the engine says of a locale's texts, it says after these rules.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from babel.core import Locale, UnknownLocaleError, get_global

LAST_RESORT = "en"

_TAG = re.compile(r"([A-Za-z]{2,3})(?:[-_]([A-Za-z]{4}))?(?:[-_]([A-Za-z]{2}|[0-9]{3}))?(?:[-_][A-Za-z0-9-]{1,30})?")
# Cantonese reads Traditional Chinese: CLDR's languageMatching has the pair as its nearest (distance 10).
_READS = {"yue": "zh"}

# What strangers send is kept in caches, so its length is bounded before it gets there.
TAG_MAX_CHARACTERS = 35  # RFC 5646, 4.4.1: the longest that one need provide for
ACCEPTED_MAX = 20  # browsers send a handful; a longer header is somebody's game
ACCEPTED_MAX_CHARACTERS = 1000


class Tag(NamedTuple):
    """A locale in its parts; what is not said is ""."""

    language: str
    script: str = ""
    territory: str = ""

    def __str__(self) -> str:
        return "-".join(part for part in self if part)


def parse(text: str) -> Tag | None:
    """`text` as a tag in canonical case, old names of languages replaced (tl -> fil, in -> id); None if it is none."""
    return _parse(text) if len(text) <= TAG_MAX_CHARACTERS else None


@lru_cache(maxsize=1024)
def _parse(text: str) -> Tag | None:
    match = _TAG.fullmatch(text)
    if match is None:
        return None
    language = match[1].lower()
    aliases = get_global("language_aliases")
    language = str(aliases.get(language, language)).partition("_")[0]
    return Tag(language, (match[2] or "").title(), (match[3] or "").upper())


def known(text: str) -> str | None:
    """The name of the locale, as CLDR has data for it: ("zh-HK") -> "zh_Hant_HK"; None where it has none."""
    tag = parse(text)
    return None if tag is None else _known(tag)


@lru_cache(maxsize=1024)
def _known(tag: Tag) -> str | None:
    filled = full(tag)
    for candidate in (tag, filled, Tag(tag.language, filled.script), Tag(tag.language)):
        try:
            # Not with Babel's own guess, which puts another script in the place of the one asked for.
            return str(Locale.parse("_".join(part for part in candidate if part), resolve_likely_subtags=False))
        except (UnknownLocaleError, ValueError):
            continue
    return None


@lru_cache(maxsize=1024)
def full(tag: Tag) -> Tag:
    """The tag with what it leaves unsaid filled in: zh-HK -> zh-Hant-HK, en -> en-Latn-US (CLDR's likely subtags)."""
    likely = get_global("likely_subtags")
    language, script, territory = tag
    for parts in ((language, script, territory), (language, territory), (language, script), (language,)):
        found = likely.get("_".join(part for part in parts if part))
        if found is not None and all(parts):
            _, likely_script, likely_territory = str(found).split("_")[:3]
            return Tag(language, script or likely_script, territory or likely_territory)
    return tag


@lru_cache(maxsize=1024)
def chain(text: str) -> tuple[Tag, ...]:
    """The locale and those it inherits from, nearest first: zh-MO -> zh-Hant-MO, zh-Hant-HK, zh-Hant-TW (which is
    zh-Hant), each filled in. Source: CLDR's parentLocales, and truncation where they say nothing; the language in
    another script is no parent (LDML, part 1, "Locale Inheritance")."""
    tag = parse(text)
    if tag is None:
        return ()
    tag = Tag(_READS.get(tag.language, tag.language), full(tag).script, full(tag).territory)
    parents = get_global("parent_exceptions")
    default_script = full(Tag(tag.language)).script
    found: list[Tag] = []
    now: Tag | None = tag
    while now is not None:
        if full(now) not in found:
            found.append(full(now))
        now = _parent(now, parents, default_script)
    return tuple(found)


def _parent(tag: Tag, parents: Mapping[str, str], default_script: str) -> Tag | None:
    """Whom the locale inherits from; None: nobody. CLDR names a locale without the script that goes without saying."""
    short = Tag(tag.language, "" if tag.script == default_script else tag.script, tag.territory)
    parent = parents.get("_".join(part for part in short if part))
    if parent is not None:
        return None if parent == "root" else parse(parent)
    if tag.territory:
        return Tag(tag.language, tag.script)
    return None


@lru_cache(maxsize=4096)
def nearest(wanted: tuple[str, ...], offered: tuple[str, ...]) -> str | None:
    """The one of the offered that a reader of `wanted` (best liked first) reads best; None where no language is shared.

    For each wanted one: itself, then what it inherits from, then another of its language and script (zh-TW for zh-HK),
    then another of its language (zh for zh-TW).
    """
    tags = {name: tag for name in offered if (tag := parse(name)) is not None}
    # Of two that say the same (zh-Hant and zh-TW) the general one is for more readers.
    filled = {name: full(tags[name]) for name in sorted(tags, key=lambda name: tags[name].territory != "")}
    for text in wanted:
        if text in offered:
            return text
        line = chain(text)
        for tag in line:
            for name, each in filled.items():
                if each == tag:
                    return name
        for name, each in filled.items():
            if line and each[:2] == line[0][:2]:
                return name
        for name, each in filled.items():
            if line and each.language == line[0].language:
                return name
    return None


def choose(wanted: Iterable[str], offered: Iterable[str]) -> str:
    """`nearest`, else English, else the first that is offered. Raises ValueError where nothing is."""
    names = tuple(offered)
    if not names:
        raise ValueError("there is nothing to choose from")
    return nearest((*wanted, LAST_RESORT), names) or names[0]


def accepted(header: str) -> tuple[str, ...]:
    """The locales of an Accept-Language header, best liked first (RFC 9110, 12.5.4). What is no locale is left out, `*`
    and what is refused (q=0) too."""
    return _accepted(header[:ACCEPTED_MAX_CHARACTERS]) if header else ()


@lru_cache(maxsize=1024)
def _accepted(header: str) -> tuple[str, ...]:
    liked: list[tuple[float, str]] = []
    for part in header.split(",")[:ACCEPTED_MAX]:
        name, *parameters = (piece.strip() for piece in part.split(";"))
        tag = parse(name)
        quality = _quality(parameters)
        if tag is not None and quality > 0:
            liked.append((-quality, str(tag)))
    return tuple(dict.fromkeys(name for _, name in sorted(liked, key=lambda each: each[0])))


def asked(accept_language: str | None, offered: tuple[str, ...]) -> str:
    """What is offered that an Accept-Language header likes best; English where it says nothing of it."""
    return choose(accepted(accept_language), offered) if accept_language else LAST_RESORT


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            match = re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", value.strip())
            return float(match[0]) if match else 0.0
    return 1.0
