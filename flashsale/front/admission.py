"""Whose body is kept: where a token is needed, it is looked at before the rest of the body has come.

A request that came whole is checked by its route or page, in the contract's order. This is for bodies that are still on
their way: what a stranger sends is not kept, and what nobody would read isn't either. Which requests there are, and
which of them need a token, follows from the OpenAPI document; the sandbox's pages, which are not in it, need none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flashsale.errors import Refused
from flashsale.front.auth import Verifier, bearer
from flashsale.front.framing import AUTHORIZATION, Head

_PARAMETER = re.compile(r"\\\{[^}]*\\\}")


class Admission:
    """Says of a head whether its body is to be kept. `document`: the OpenAPI document; `open_under`: paths under which
    whatever is sent is read without a token, and which it does not name."""

    def __init__(self, verifier: Verifier, document: Mapping[str, Any], open_under: Sequence[str] = ()) -> None:
        self._verifier = verifier
        self._open_under = tuple(f"{path}/".encode() for path in open_under)
        self._taken = [
            (re.compile(_PARAMETER.sub("[^/]+", re.escape(path)).encode()), _is_needed(operation["security"]))
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if "requestBody" in operation
        ]

    def keeps(self, head: Head, now_s: float) -> bool:
        """Whether somebody will read the body. Raises Refused("unauthenticated") where a token is needed for it and a
        good one is not there."""
        path = head.target.partition(b"?")[0]
        needs = [token for pattern, token in self._taken if pattern.fullmatch(path)]
        if not needs:
            return path.startswith(self._open_under)
        if not all(needs):
            return True
        authorization = head.fields.get(AUTHORIZATION)
        if authorization is None:
            raise Refused("unauthenticated", "Send `Authorization: Bearer` and one token.")
        self._verifier.verify(bearer(authorization), now_s)
        return True


def _is_needed(security: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an operation needs a token: it names what it takes, and nothing at all is not among that."""
    return bool(security) and all(security)
