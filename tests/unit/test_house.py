"""The house keeps its order: who imports whom, what files are called, what a script says of itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import flashsale

PACKAGE = Path(flashsale.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(PACKAGE.rglob("*.lua"))

# What each part may import of ours. Dependencies point inwards: sale is the innermost.
MAY_IMPORT = {
    "sale": set(),
    "reservation": {"sale"},
    "ledger": {"sale"},
    "partners": {"sale"},
    "pipeline": {"sale", "reservation", "ledger", "partners"},
    "front": {"sale", "reservation", "ledger", "partners"},
}
# Tables of knobs, problems, metric names and texts: open to every part but sale, and themselves knowing no part.
SHARED = {"settings", "errors", "metrics", "languages"}
# What puts the parts together, and so may know them all. No part knows any of these.
WIRING = {
    "__main__",
    "audit",
    "cli",
    "commands",
    "duties",
    "engine",
    "importing",
    "merchandising",
    "recovery",
    "worker",
}


def part_of(path: Path) -> str:
    """The part of the house that a file belongs to: the first name below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and part of each import of ours, wherever in the source it stands (a function, an `if TYPE_CHECKING`)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = list(package[: len(package) + 1 - node.level]) if node.level else []
            stem = above + (node.module.split(".") if node.module else [])
            modules = [[*stem, alias.name] for alias in node.names]
        else:
            continue
        yield from ((node.lineno, names[1]) for names in modules if names[0] == "flashsale" and len(names) > 1)


def is_part(name: str) -> bool:
    """Whether a name below the package is a file or a folder, not a name of its __init__ such as __version__."""
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()


def permitted(part: str, imported: str) -> bool:
    if imported == part or part in WIRING:
        return True
    if part in MAY_IMPORT:
        return imported in MAY_IMPORT[part] or (imported in SHARED and part != "sale")
    # What is left serves the wiring (a file format, a process): it knows no part of the house.
    return imported not in MAY_IMPORT and imported not in WIRING


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_inwards(path: Path) -> None:
    part = part_of(path)
    package = ("flashsale", *path.relative_to(PACKAGE).parent.parts)
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {part} imports {imported}"
        for line, imported in imported_parts(path.read_text(), package)
        if is_part(imported) and not permitted(part, imported)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("part", "imported", "allowed"),
    [
        ("sale", "settings", False),
        ("sale", "ledger", False),
        ("reservation", "sale", True),
        ("reservation", "ledger", False),
        ("ledger", "reservation", False),
        ("pipeline", "front", False),
        ("front", "pipeline", False),
        ("front", "metrics", True),
        ("front", "audit", False),
        ("settings", "sale", False),
        ("audit", "ledger", True),
    ],
)
def test_the_rule_itself(part: str, imported: str, allowed: bool) -> None:
    assert permitted(part, imported) == allowed


@pytest.mark.parametrize(
    "source",
    [
        "import flashsale.front.app",
        "import flashsale.front as shop",
        "from flashsale import front",
        "from flashsale.front.app import make_app",
        "from .. import front",
        "from ..front import app",
        "def late():\n    from ..front.app import make_app",
    ],
)
def test_every_way_to_import_is_seen(source: str) -> None:
    assert [part for _, part in imported_parts(source, ("flashsale", "sale"))] == ["front"]


def test_every_file_is_named_for_its_job() -> None:
    nameless = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"}
    named = [path for path in PACKAGE.rglob("*") if nameless & set(path.stem.lower().split("_"))]
    assert not named


def test_every_file_opens_with_what_it_is_for() -> None:
    silent = [
        path for path in SOURCES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_no_two_test_files_share_a_name() -> None:
    # pytest imports a test file by its bare name: a second one of that name ends the collection of all of them.
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_opens_with_its_contract(path: Path) -> None:
    contract = []
    for line in path.read_text().splitlines():
        if not line.startswith("--"):
            break
        contract.append(line)
    text = "\n".join(contract)
    missing = [word for word in ("KEYS", "ARGV", "Answers") if word not in text]
    assert not missing, f"{path.name}: its contract names no {', '.join(missing)}"
