"""`flashsale payments …`: does the payment provider have what the ledger has?

Works beside the running engine: on its ledger, with its provider's keys. Changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from flashsale.commands.token import lifetime_s

if TYPE_CHECKING:
    from flashsale.pipeline.reconciliation import Reconciled
    from flashsale.settings import Settings

ANSWER_TIMEOUT_S = 60.0

app = typer.Typer(
    name="payments",
    help="Compare the payment provider with the ledger.",
    epilog="Example: flashsale payments reconcile --since 48h",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def payments() -> None:
    """Compare the payment provider with the ledger."""


@app.command(epilog="Example: flashsale payments reconcile --since 7d --json")
def reconcile(
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="How far back: 90s, 15m, 48h, 7d.")] = "48h",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print {ok, intents, payments, refunds, differences}.")
    ] = False,
) -> None:
    """Compare intents, amounts and refunds both ways and name every difference; exit 1 on any.

    What is on its way is looked at twice before it is called a difference.
    """
    from flashsale import logs, runfile, settings
    from flashsale.partners.payments.provider import ProviderAway

    seconds = lifetime_s(since)
    chosen = runfile.with_payments(settings.load())
    logs.set_up(chosen.log_level, part="reconcile")
    _, database_url = runfile.addresses(chosen)
    if chosen.payments_api_key is None:
        raise typer.BadParameter(
            "no payment provider is set up: set FLASHSALE_PAYMENTS_API_KEY, or start `flashsale up`"
        )
    try:
        found = asyncio.run(_reconcile(chosen, database_url, round(1000 * (time.time() - seconds))))
    except ProviderAway as away:
        typer.echo(f"flashsale: the payment provider is away: {away}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        json.dump(found.as_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(found, since)
    if found.differences:
        raise typer.Exit(1)


async def _reconcile(chosen: Settings, database_url: str, since_ms: int) -> Reconciled:
    from flashsale.ledger import pool
    from flashsale.partners.payments.account import open_account
    from flashsale.pipeline import reconciliation

    connection = await pool.connect(database_url, command_timeout_s=ANSWER_TIMEOUT_S)
    provider = open_account(chosen)
    assert provider is not None  # noqa: S101  the caller has looked for its key
    try:
        return await reconciliation.reconcile(connection, provider, since_ms)
    finally:
        await provider.aclose()
        connection.terminate()


def _print(found: Reconciled, since: str) -> None:
    for difference in found.differences:
        typer.echo(str(difference))
    count = len(found.differences)
    verdict = "provider and ledger agree" if not count else f"{count} difference{'s' * (count != 1)}"
    typer.echo(
        f"{verdict}: {found.intents} intents and {found.refunds} refunds at the provider, "
        f"{found.payments} payments in the ledger, of the last {since}"
    )
