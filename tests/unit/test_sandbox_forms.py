"""The sandbox reads what Stripe's library writes, and refuses what makes no sense by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe._encode import _api_encode

from flashsale.partners.payments.sandbox.errors import ApiError
from flashsale.partners.payments.sandbox.faults import Faults
from flashsale.partners.payments.sandbox.forms import Params, parse

NAMES = st.text("abcdefgh_", min_size=1, max_size=6)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        TEXTS,
        lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(NAMES, inner, min_size=1, max_size=3),
        max_leaves=6,
    ),
    max_size=5,
)


def depth(node: Any) -> int:
    if isinstance(node, dict):
        return 1 + max(map(depth, node.values()), default=0)
    return 1 + max(map(depth, node)) if isinstance(node, list) else 0


@given(TREES)
def test_what_the_library_writes_is_read_back(tree: dict[str, Any]) -> None:
    from urllib.parse import urlencode

    body = urlencode(list(_api_encode(tree)))  # type: ignore[no-untyped-call]
    if depth(tree) > 6:
        with pytest.raises(ApiError):
            parse(body)
    else:
        assert parse(body) == tree


@given(st.text(max_size=60))
def test_no_body_raises_anything_but_stripes_error(body: str) -> None:
    try:
        tree = parse(body)
    except ApiError as fault:
        assert fault.status == 400
        return
    params = Params(tree)
    for name in tree:
        for read in (params.text, params.integer, params.truth, params.url, params.inner, params.items):
            try:
                read(name)
            except ApiError as fault:
                assert fault.error["param"] == name


@pytest.mark.parametrize("body", ["a=1&a=2", "a=1&a[b]=2", "a[b]=1&a=2", "a[][b]=1", "[a]=1", "a[b=1", "a", "x" * 9])
def test_contradictions_are_refused(body: str) -> None:
    with pytest.raises(ApiError):
        parse(body)


@pytest.mark.parametrize(
    ("given_faults", "named"),
    [
        ([], "object"),
        ({"decline": 1.5}, "decline"),
        ({"decline": True}, "decline"),
        ({"delay_ms": 0.5}, "delay_ms"),
        ({"delay_ms": -1}, "delay_ms"),
        ({"seed": "x"}, "seed"),
        ({"explode": 1}, "explode"),
        ({"_random": 1}, "_random"),
    ],
    ids=str,
)
def test_faults_that_make_no_sense_are_named(given_faults: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Faults.of(given_faults)


def test_faults_are_the_same_for_the_same_seed() -> None:
    def drawn(seed: int) -> list[Any]:
        faults = Faults.of({"seed": seed, "decline": 0.5, "lose": 0.2, "repeat": 0.2, "reorder": 0.2})
        return [(faults.declines(), faults.deliveries()) for _ in range(50)]

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
