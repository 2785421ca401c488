"""`flashsale backup DIR`: the ledger in one instant as files, while orders go on."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: flashsale backup /backups/double11-noon")
def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory; named so when it is whole.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Write the ledger of the running engine, and the tokens' secret, to DIR (0700: whoever has it has the shop)."""
    import msgspec
    from rich.console import Console

    from flashsale import logs, runfile, secret, settings
    from flashsale.recovery.backup import back_up

    chosen = settings.load()
    logs.set_up(chosen.log_level, part="backup")
    _, database_url = runfile.addresses(chosen)
    try:
        key = secret.find(chosen)
    except secret.NoSecret:
        key = None
    console = Console(stderr=True)
    with console.status("backup") if console.is_terminal else contextlib.nullcontext() as status:
        show = (lambda step: status.update(f"backup: {step}")) if status is not None else (lambda step: None)
        manifest = asyncio.run(back_up(database_url, directory.absolute(), key, show))
    if as_json:
        typer.echo(msgspec.json.encode(manifest).decode())
        return
    typer.echo(
        f"{directory}: {manifest.orders} orders, {len(manifest.tables)} tables of revision {manifest.revision}, up to"
        f" journal entry {manifest.mark[0]}-{manifest.mark[1]}"
    )
    typer.echo(
        "the tokens' secret is in it (0600): keep it as safe as the engine" if manifest.secret else "no secret is in it"
    )
