"""`flashsale deadletters …`: what was set aside because nothing could be done with it, and the way back.

Works on the running engine's ledger. Exits 1 with one line where there is no such thing or it fails again.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from flashsale.commands.on_ledger import run_on_ledger

if TYPE_CHECKING:
    from flashsale.ledger.pool import Connection
    from flashsale.pipeline.deadletters import Letter

Result = TypeVar("Result")
CONTENT_SHOWN = 120  # characters of it in the list

app = typer.Typer(
    name="deadletters",
    help="What was set aside because nothing could be done with it: list it, show it, retry it.",
    epilog="Example: flashsale deadletters list",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="As the list shows it: order:7, event:12, import:im-3, …")]


@app.command("list", epilog="Example: flashsale deadletters list --limit 5 --json")
def list_letters(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Journal lines, provider's events, imports, settlements and outbox rows that were set aside."""
    from flashsale.pipeline import deadletters

    found = _run(lambda connection: deadletters.newest(connection, limit), as_json)
    if as_json:
        print(json.dumps({"deadletters": [asdict(letter) for letter in found]}, ensure_ascii=False), flush=True)
        return
    for letter in found:
        content = (letter.content or "").replace("\n", " ")[:CONTENT_SHOWN]
        typer.echo(f"{letter.id}  {letter.at}  {letter.error}  {content}".rstrip())
    if not found:
        typer.echo("nothing is set aside")


@app.command(epilog="Example: flashsale deadletters show order:7")
def show(id: Id, as_json: AsJson = False) -> None:
    """One of them, whole."""
    from flashsale.pipeline import deadletters

    letter = _run(lambda connection: deadletters.get(connection, id), as_json)
    if as_json:
        print(json.dumps(asdict(letter), ensure_ascii=False), flush=True)
        return
    _print(letter)


@app.command(epilog="Example: flashsale deadletters retry event:12")
def retry(id: Id, as_json: AsJson = False) -> None:
    """Do it again in the normal way. What fails again stays where it is."""
    from flashsale.partners.payments.stripe import facts_of
    from flashsale.pipeline import deadletters

    outcome = _run(lambda connection: deadletters.retry(connection, id, facts_of), as_json)
    typer.echo(json.dumps({"id": id, "outcome": outcome}) if as_json else f"{id}: {outcome}")


def _run(command: Callable[[Connection], Awaitable[Result]], as_json: bool) -> Result:
    """What the command answers. A thing that fails again, for whatever reason, is one line."""
    from flashsale.merchandising import CommandRefused
    from flashsale.pipeline.deadletters import NotSetAside

    async def carefully(connection: Connection) -> Result:
        try:
            return await command(connection)
        except (NotSetAside, LookupError, TypeError, ValueError) as fault:
            said = str(fault) if isinstance(fault, NotSetAside) else f"it fails again: {type(fault).__name__}: {fault}"
            raise CommandRefused(said) from fault

    return run_on_ledger(carefully, as_json)


def _print(letter: Letter) -> None:
    typer.echo(f"{letter.id}  {letter.at}\n{letter.error}")
    if letter.content is not None:
        typer.echo(letter.content)
