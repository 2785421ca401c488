"""`flashsale token`: prints bearer tokens, one a line and nothing else, so that they can be pasted and piped.

Signs with the engine's secret (secret.py). Imports little, no HTTP: 50,000 tokens come in well under three seconds,
start-up included.
"""

import re
import sys
import time
from typing import Annotated

import typer

LIFETIME_MAX_S = 3650 * 86_400  # ten years: a longer one is a slip of the keyboard
COUNT_MAX = 10_000_000  # tokens of one call; about 2.3 GB of text
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

app = typer.Typer(
    name="token",
    help="Print bearer tokens, one a line and nothing else.",
    epilog="Example: flashsale token shopper ada --ttl 24h",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def lifetime_s(text: str) -> int:
    """Seconds of a lifetime such as `90s`, `15m`, `24h` or `7d`; raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(match[1]) * _UNITS_S[match[2]] if match else 0
    if not 1 <= seconds <= LIFETIME_MAX_S:
        raise typer.BadParameter(f"{text!r} is not a lifetime: write 90s, 15m, 24h or 7d, at most 3650d")
    return seconds


Ttl = Annotated[str, typer.Option("--ttl", metavar="TIME", help="Lifetime: 90s, 15m, 24h, 7d.")]
AsJson = Annotated[bool, typer.Option("--json", help='Print {"tokens": […], "role", "expires_at"} instead.')]


@app.command(epilog="Example: flashsale token shopper ada --ttl 24h")
def shopper(
    shopper_id: Annotated[str, typer.Argument(metavar="ID", help="The shopper's name: the token's subject.")],
    ttl: Ttl = "24h",
    count: Annotated[
        int | None, typer.Option("--count", min=1, max=COUNT_MAX, help="Print tokens of ID-1 … ID-N, one a line.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a shopper's token."""
    _print(shopper_id, "shopper", ttl, count, as_json)


@app.command(epilog='Example: curl -H "Authorization: Bearer $(flashsale token admin)" …')
def admin(ttl: Ttl = "24h", as_json: AsJson = False) -> None:
    """Print an admin's token."""
    _print("admin", "admin", ttl, None, as_json)


@app.command(epilog='Example: flashsale token agent li-wei (who then orders with "for": "ada")')
def agent(
    agent_id: Annotated[str, typer.Argument(metavar="ID", help="The agent's name: what recipients sign grants for.")],
    ttl: Ttl = "24h",
    as_json: AsJson = False,
) -> None:
    """Print the token of an agent, who orders for others."""
    _print(agent_id, "agent", ttl, None, as_json)


@app.command(epilog="Example: flashsale token channel lazada-sg --ttl 30d")
def channel(
    channel_id: Annotated[str, typer.Argument(metavar="ID", help="The sales channel's id.")],
    ttl: Ttl = "24h",
    as_json: AsJson = False,
) -> None:
    """Print a sales channel's token."""
    _print(channel_id, "channel", ttl, None, as_json)


@app.command(epilog="Example: flashsale token merchant haier --ttl 7d")
def merchant(
    merchant_id: Annotated[str, typer.Argument(metavar="ID", help="The merchant's id.")],
    ttl: Ttl = "24h",
    as_json: AsJson = False,
) -> None:
    """Print a merchant's token."""
    _print(merchant_id, "merchant", ttl, None, as_json)


def _print(sub: str, role: str, ttl: str, count: int | None, as_json: bool) -> None:
    from flashsale import secret, settings  # here: `flashsale token --help` needs none of it
    from flashsale.front.auth import mint

    seconds = lifetime_s(ttl)
    now_s = int(time.time())
    try:
        tokens = mint(secret.find(settings.load()).encode(), sub, role, seconds, now_s, count)
    except ValueError as fault:
        raise typer.BadParameter(f"{fault}", param_hint="ID") from None
    if as_json:
        import json

        expires_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s + seconds))
        sys.stdout.write(json.dumps({"tokens": list(tokens), "role": role, "expires_at": expires_at}) + "\n")
    else:
        sys.stdout.writelines(f"{token}\n" for token in tokens)
