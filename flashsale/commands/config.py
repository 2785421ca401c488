"""`flashsale config`: every setting with its value, default, unit and meaning."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: FLASHSALE_PORT=9000 flashsale config --json")
def config(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list of {variable, value, default, unit, meaning}.")
    ] = False,
) -> None:
    """List every setting: its variable, value, default, unit and meaning."""
    from flashsale import settings

    knobs = list(settings.load().knobs())
    if as_json:
        import json
        from dataclasses import asdict

        json.dump([asdict(knob) for knob in knobs], sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    for knob in knobs:
        value, default = _shown(knob.value), _shown(knob.default)
        is_default = "" if knob.value == knob.default else f" (default {default})"
        sys.stdout.write(f"{knob.variable} = {value}{is_default}  [{knob.unit}]\n    {knob.meaning}\n")


def _shown(value: object) -> str:
    return "(unset)" if value is None else str(value)
