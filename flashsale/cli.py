"""The command line: `flashsale COMMAND …`. Each command is a module of flashsale/commands, imported when it is called.

Exit status: 0, 1 (a check failed, or the engine could not do it), 2 (usage, settings). A fault is one line on stderr;
with FLASHSALE_LOG_LEVEL=debug its traceback too.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# In the order of --help. The module's `app` is the command, or the group of its subcommands.
COMMANDS = {
    "up": "flashsale.commands.up",
    "serve": "flashsale.commands.serve",
    "worker": "flashsale.commands.worker",
    "sale": "flashsale.commands.sale",
    "merchant": "flashsale.commands.merchant",
    "import": "flashsale.commands.import_catalogue",
    "token": "flashsale.commands.token",
    "migrate": "flashsale.commands.migrate",
    "audit": "flashsale.commands.audit",
    "recover": "flashsale.commands.recover",
    "backup": "flashsale.commands.backup",
    "restore": "flashsale.commands.restore",
    "deadletters": "flashsale.commands.deadletters",
    "payments": "flashsale.commands.payments",
    "webhooks": "flashsale.commands.webhooks",
    "promises": "flashsale.commands.promises",
    "parcels": "flashsale.commands.parcels",
    "config": "flashsale.commands.config",
    "sandbox": "flashsale.commands.sandbox",
}


class _Commands(TyperGroup):
    """Imports a command's module only when that command is asked for: `flashsale token` must not wait for aiohttp."""

    # Typer brings a copy of click of its own, whose types are not public: hence Any.
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module: typer.Typer = import_module(COMMANDS[cmd_name]).app
        is_group = len(module.registered_commands) > 1 or module.registered_callback is not None
        command = typer.main.get_group(module) if is_group else typer.main.get_command(module)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Commands,
    help="A flash-sale order-processing engine. Settings: `flashsale config`.",
    epilog="Example: flashsale up",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("flashsale"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the command."""


def main() -> None:
    """The command's entry point: runs it, and turns what it raises into one line and an exit status."""
    from flashsale.settings import misspelt

    for line in misspelt(os.environ).values():
        print(f"flashsale: {line}", file=sys.stderr)
    try:
        app(prog_name="flashsale")
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception as fault:
        if os.environ.get("FLASHSALE_LOG_LEVEL") == "debug":
            raise
        # Our own faults carry a whole sentence; a stranger's needs its type to be understood.
        ours = type(fault).__module__.startswith("flashsale.")
        text = " ".join(str(fault).split())
        print(f"flashsale: {text}" if ours else f"flashsale: {type(fault).__name__}: {text}", file=sys.stderr)
        sys.exit(2 if type(fault).__name__ == "SettingsFault" else 1)


if __name__ == "__main__":
    main()
