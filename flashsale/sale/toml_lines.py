"""Where the keys and tables of a TOML text stand: tomllib knows values but not lines.

The text is walked once, token by token, before tomllib reads it: the walk also stops what would make tomllib recurse or
run in squares. Right for TOML; of anything else, tomllib tells what is wrong.
"""

import re
import tomllib
from typing import TypeAlias

Place: TypeAlias = tuple[str | int, ...]  # where a value stands: ("offers", 3, "prices", "SG")


class NestedTooDeep(Exception):
    """The text is nested deeper than its reader takes. `line`: where, from 1."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def line_numbers(text: str, depth_max: int, index_max: int) -> dict[Place, int]:
    """The line of every table and key, by its place; of an array's tables those up to `index_max`.

    Raises NestedTooDeep for what is nested deeper than `depth_max`.
    """
    lines = _Lines(depth_max, index_max)
    lines.walk(text)
    return lines.at


# Possessive, so that no token is scanned twice: an unclosed string ends the walk, it doesn't start it again.
_TOKEN = re.compile(
    r"""
      (?P<space> [ \t\r]+ | \#[^\n]* )
    | (?P<newline> \n )
    | (?P<string> \"{3} (?: [^"\\] | \\. | "{1,2}(?!") )*+ "{3,5} | '{3} (?: [^'] | '{1,2}(?!') )*+ '{3,5} )
    | (?P<unclosed> \"{3} | '{3} )
    | (?P<word> "(?: [^"\\\n] | \\[^\n] )*+" | '[^'\n]*+' | [^ \t\r\n"'\#\[\]{}=,.]++ )
    | (?P<mark> [\[\]{}=,.] )
    | (?P<broken> . )
    """,
    re.VERBOSE | re.DOTALL,
)


class _Lines:
    """The walk: what is open around the token, and the lines of what came before it."""

    def __init__(self, depth_max: int, index_max: int) -> None:
        self.at: dict[Place, int] = {}
        self._depth_max, self._index_max = depth_max, index_max
        self._line = 1
        self._last_index: dict[Place, int] = {}  # of each array of tables
        self._table: Place = ()  # the table of the last header
        self._open: list[tuple[str, Place, int]] = []  # brackets around the token: mark, place, index in an array
        self._key: list[str] = []
        self._key_line = 1
        self._value: Place | None = None  # the value that is being read; None where a key is
        self._header = 0  # brackets of the header that is being read

    def walk(self, text: str) -> None:
        for token in _TOKEN.finditer(text):
            kind, part = token.lastgroup, token[0]
            if kind == "newline":
                self._newline()
            elif kind == "word":
                self._word(part)
            elif kind == "mark":
                self._mark(part, text[token.end() : token.end() + 1])
            elif kind == "string":
                self._line += part.count("\n")
            elif kind != "space":
                return

    def _newline(self) -> None:
        self._line += 1
        if not self._open:
            self._key, self._value, self._header = [], None, 0

    def _word(self, part: str) -> None:
        if self._value is not None:
            return
        if not self._key:
            self._key_line = self._line
        self._key.append(_key_text(part))
        self._check_depth(len(self._key))

    def _mark(self, mark: str, following: str) -> None:
        if self._header:
            if mark == "]":
                self._enter_table()
        elif self._value is None:
            self._mark_at_key(mark, following)
        elif mark in "[{":
            self._open_bracket(mark, self._value)
        elif mark in "]}":
            self._close_bracket()
        elif mark == "," and self._open:
            self._next_element()

    def _mark_at_key(self, mark: str, following: str) -> None:
        if mark == "=":
            self._value = self._note((self._open[-1][1] if self._open else self._table), self._key)
            self._key = []
        elif mark == "[" and not self._open and not self._key:
            self._header = 2 if following == "[" else 1
        elif mark == "}" and self._open:
            self._close_bracket()

    def _note(self, base: Place, key: list[str]) -> Place:
        place = base
        for part in key:
            place = (*place, part)
            self.at.setdefault(place, self._key_line)
        return place

    def _enter_table(self) -> None:
        """After `[a.b]` or `[[a.b]]`: names on the way mean the last table of an array of that name."""
        if not self._key:  # the second "[" of "[[", or nothing between the brackets
            return
        place: Place = ()
        for part in self._key[:-1]:
            place = self._note(place, [part])
            if place in self._last_index:
                place = (*place, self._last_index[place])
        place = self._note(place, self._key[-1:])
        if self._header == 2:
            self._last_index[place] = self._last_index.get(place, -1) + 1
            place = (*place, self._last_index[place])
        elif place in self._last_index:
            place = (*place, self._last_index[place])
        self.at.setdefault(place, self._key_line)
        self._table, self._key, self._header = place, [], 0

    def _open_bracket(self, mark: str, place: Place) -> None:
        around, _, index = self._open[-1] if self._open else ("", (), 0)
        if (
            around == "[" and index <= self._index_max
        ):  # a list of a million is refused anyway: don't remember its lines
            self.at.setdefault(place, self._line)
        self._open.append((mark, place, 0))
        self._check_depth(len(self._open))
        self._value = (*place, 0) if mark == "[" else None

    def _close_bracket(self) -> None:
        if self._open:
            _, self._value, _ = self._open.pop()
            self._key = []

    def _next_element(self) -> None:
        mark, place, index = self._open[-1]
        if mark == "{":
            self._value = None
        else:
            self._open[-1] = (mark, place, index + 1)
            self._value = (*place, index + 1)

    def _check_depth(self, depth: int) -> None:
        if depth > self._depth_max:
            raise NestedTooDeep(self._line)


def _key_text(part: str) -> str:
    """A key as tomllib will name it: quotes off, escapes resolved."""
    if part[0] == "'" or (part[0] == '"' and "\\" not in part):
        return part[1:-1]
    if part[0] == '"':
        try:
            return str(tomllib.loads(f"key = {part}")["key"])
        except ValueError:
            return part
    return part
