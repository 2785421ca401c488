"""Every refusal has a published problem, and every route says which ones it may answer with."""

from __future__ import annotations

import ast
import dis
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

import flashsale
from flashsale.errors import PROBLEMS
from flashsale.front.app import ROUTES
from flashsale.front.openapi import OPENAPI

PACKAGE = Path(flashsale.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = {"internal", "too-many-requests", "headers-too-large", "method-not-allowed"}  # of no single route
IMPOSSIBLE = {
    "/v1/sales": {"unknown-sale"},  # it names none
    "/v1/carriers/{carrier}/events": {"not-shippable"},  # a carrier is not told: it is noted on the parcel
}
OF_EVERY_STEP = {"too-large", "not-found", "overloaded", "outcome-unknown"}  # too-large is the hot path's own


def refusals(tree: ast.AST) -> Iterator[str]:
    """The names that are refused with in a piece of source."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("Refused", "Unknown") and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_refusal_is_a_published_problem(path: Path) -> None:
    assert set(refusals(ast.parse(path.read_text()))) <= set(PROBLEMS)


def test_every_problem_says_what_to_do_next() -> None:
    for name, problem in PROBLEMS.items():
        assert problem.title, name
        assert problem.next_step.endswith("."), name


def globals_of(code: CodeType) -> Iterator[str]:
    """The global names that a function uses, its inner functions included."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from globals_of(inner)


def reached(function: Any, seen: set[Any]) -> Iterator[ast.AST]:
    """The source of `function` and of all functions of the front and the ledger that it names, and so on."""
    function = inspect.unwrap(function)
    if isinstance(function, type):
        for member in vars(function).values():
            member = getattr(member, "__func__", member)
            if isinstance(member, FunctionType):
                yield from reached(member, seen)
        return
    if not isinstance(function, FunctionType) or function in seen:
        return
    if not function.__module__.startswith(("flashsale.front", "flashsale.ledger")):
        return
    seen.add(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError:  # what dataclasses write themselves
        return
    yield tree
    named = set(globals_of(function.__code__))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in named:
            module = function.__globals__.get(node.value.id)
            if isinstance(module, ModuleType):
                yield from reached(getattr(module, node.attr, None), seen)
            elif isinstance(module, type) and module.__module__.startswith("flashsale.ledger"):
                yield from reached(module, seen)
        elif isinstance(node, ast.Name) and node.id in named:
            yield from reached(function.__globals__.get(node.id), seen)


@pytest.mark.parametrize(("method", "path", "page"), ROUTES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_route_lists_what_it_refuses_with(method: str, path: str, page: Callable[..., Any]) -> None:
    raised = {name for tree in reached(page, set()) for name in refusals(tree)}
    answers = OPENAPI["paths"][path][method.lower()]["responses"].values()
    listed = {name for answer in answers for name in re.findall(r"`([a-z-]+)`", answer["description"])}
    assert raised - EVERYWHERE - IMPOSSIBLE.get(path, set()) <= listed
    # The other way round: nothing is listed that the route has no reason for.
    assert (listed & set(PROBLEMS)) - raised <= OF_EVERY_STEP
