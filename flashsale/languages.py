"""The languages that the engine's own texts are in: problems, the next step of an order, the pay pages.

A text's English is its name (gettext): whoever writes `Problem(404, "There is nothing here", …)` has named it, and
`locales/<language>/LC_MESSAGES/flashsale.po` has it in every other language. `scripts/messages` finds the texts in the
sources and compiles the files; a test says which text is missing where. Which of them a reader gets, sale/locales.py
knows.
"""

import gettext
from functools import lru_cache
from pathlib import Path

DOMAIN = "flashsale"
FOLDER = Path(__file__).parent / "locales"

ENGLISH = "en"
TRANSLATED = ("zh-Hans", "zh-Hant", "th", "id", "ms", "fil", "vi")
LANGUAGES = (ENGLISH, *TRANSLATED)
"""BCP 47. Their folders are called as gettext calls them (zh_Hans)."""


def say(text: str, language: str) -> str:
    """The engine's `text` in a language of LANGUAGES. What is no text of the engine's (a detail with a SKU's name in
    it, say) stays as it is."""
    if language == ENGLISH or not text:
        return text
    return _texts(language).gettext(text)


@lru_cache(maxsize=len(LANGUAGES))
def _texts(language: str) -> gettext.NullTranslations:
    """Read once. Raises FileNotFoundError where the package came without its compiled texts."""
    return gettext.translation(DOMAIN, FOLDER, [language.replace("-", "_")])
