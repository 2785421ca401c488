"""Form-encoded parameters with Stripe's brackets: `metadata[order]=x`, `expand[]=y`, `line_items[0][quantity]=1`."""

import re
from typing import Any
from urllib.parse import parse_qsl

from flashsale.partners.payments.sandbox.errors import ApiError, bad_param

PAIRS_MAX = 500
DEPTH_MAX = 6
TEXT_MAX = 5000
METADATA_KEYS_MAX = 50  # Stripe's limits: https://docs.stripe.com/api/metadata
METADATA_KEY_MAX = 40
METADATA_VALUE_MAX = 500
AMOUNT_MAX = 999_999_999_999  # twelve digits, which Stripe takes for IDR; fewer for others
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")

Tree = dict[str, Any]


def parse(text: str) -> Tree:
    """The pairs as nested objects; a list where the brackets are empty or count from 0. Raises ApiError."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=PAIRS_MAX)
    except ValueError:
        raise ApiError(400, f"The body is not form-encoded, or has more than {PAIRS_MAX} fields.") from None
    root: Tree = {}
    for name, value in pairs:
        match = _NAME.fullmatch(name)
        if match is None:
            raise bad_param(name[:100], f"Invalid parameter name: {name[:100]}", "parameter_unknown")
        if "\0" in value or len(value) > TEXT_MAX:
            raise bad_param(name[:100], f"Invalid string: the value of {name[:100]} is too long or holds U+0000")
        path = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
        if len(path) > DEPTH_MAX:
            raise bad_param(name[:100], f"{name[:100]} is nested too deep")
        _put(root, path, value, name)
    return {name: _lists(value) for name, value in root.items()}


def _put(root: Tree, path: list[str], value: str, name: str) -> None:
    node = root
    for step in path[:-1]:
        if step == "":
            raise bad_param(name[:100], f"{name[:100]}: empty brackets stand at the end alone; count from 0")
        if not isinstance(node.setdefault(step, {}), dict):
            raise bad_param(name[:100], f"{name[:100]} is given as a value and as an object")
        node = node[step]
    last = path[-1] or str(len(node))
    if last in node:
        raise bad_param(name[:100], f"{name[:100]} is given twice")
    node[last] = value


def _lists(node: Any) -> Any:
    """Objects whose names count from 0 are lists."""
    if not isinstance(node, dict):
        return node
    if node and list(node) == [str(index) for index in range(len(node))]:
        return [_lists(value) for value in node.values()]
    return {name: _lists(value) for name, value in node.items()}


class Params:
    """The parameters of one request. Reading one checks it; the reader says which others may stand beside it."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def only(self, *names: str) -> "Params":
        """Raises ApiError for a parameter that is none of these, as Stripe does."""
        for name in self.tree:
            if name not in names and name != "expand":
                raise bad_param(name, f"Received unknown parameter: {name}", "parameter_unknown")
        return self

    def text(self, name: str) -> str | None:
        value = self.tree.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise bad_param(name, f"Invalid string: {name}")
        return value

    def need(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise bad_param(name, f"Missing required param: {name}.", "parameter_missing")
        return value

    def integer(self, name: str, least: int = 0, most: int = AMOUNT_MAX) -> int | None:
        value = self.text(name)
        if value is None:
            return None
        if re.fullmatch(r"-?[0-9]{1,15}", value) is None:
            raise bad_param(name, f"Invalid integer: {value[:40]}", "parameter_invalid_integer")
        number = int(value)
        if number < least:
            raise bad_param(name, f"This value must be greater than or equal to {least}.", "parameter_invalid_integer")
        if number > most:
            raise bad_param(name, f"This value must be less than or equal to {most}.", "parameter_invalid_integer")
        return number

    def truth(self, name: str) -> bool:
        value = self.text(name)
        if value not in (None, "true", "false"):
            raise bad_param(name, f"Invalid boolean: {value}")
        return value == "true"

    def url(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and re.match(r"https?://[^\s/]", value) is None:
            raise bad_param(name, "Not a valid URL", "url_invalid")
        return value

    def inner(self, name: str) -> "Params":
        """The object under a name; an absent one is empty."""
        value = self.tree.get(name, {})
        if not isinstance(value, dict):
            raise bad_param(name, f"Invalid object: {name}")
        return Params(value)

    def items(self, name: str) -> list[Any] | None:
        value = self.tree.get(name)
        if value is not None and not isinstance(value, list):
            raise bad_param(name, f"Invalid array: {name}")
        return value

    def metadata(self) -> dict[str, str]:
        value = self.tree.get("metadata", {})
        if value == "":
            return {}
        if not isinstance(value, dict) or len(value) > METADATA_KEYS_MAX:
            raise bad_param("metadata", "Metadata is at most 50 pairs of text")
        for key, text in value.items():
            if not isinstance(text, str) or len(key) > METADATA_KEY_MAX or len(text) > METADATA_VALUE_MAX:
                raise bad_param(f"metadata[{key[:40]}]", "Metadata is at most 50 pairs of text")
        return {key: text for key, text in value.items() if text}
