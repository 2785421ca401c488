"""`flashsale sandbox`: servers that stand in for the outside world while one develops and tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="sandbox",
    help="Servers that stand in for the outside world.",
    epilog="Example: flashsale sandbox payments --port 12111",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def sandboxes() -> None:
    """Servers that stand in for the outside world."""


@app.command(
    epilog="Example: flashsale sandbox payments --port 12111 --webhook-url http://127.0.0.1:8080/v1/webhooks/payments"
)
def payments(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0: a free one.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where its state lies; unset: `payments` in the engine's.")
    ] = None,
    webhook_url: Annotated[
        str | None, typer.Option("--webhook-url", help="Where its events are sent; unset: they are only listed.")
    ] = None,
    pages_url: Annotated[
        str | None,
        typer.Option("--pages-url", help="Where shoppers reach its pages, if by way of the engine; unset: here."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", help="Better FLASHSALE_PAYMENTS_API_KEY, which no process list shows."),
    ] = None,
    webhook_secret: Annotated[
        str | None,
        typer.Option("--webhook-secret", help="Better FLASHSALE_PAYMENTS_WEBHOOK_SECRET, which no process list shows."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print {pid, address, api_key, webhook_secret} when it serves.")
    ] = False,
) -> None:
    """A payment provider that answers as Stripe does, moves no money, and fails on request, until SIGTERM.

    It answers what the engine asks of Stripe, signs its webhooks, and shows a page to pay or decline. A key that is
    not given is made once. POST {address}/sandbox/faults declines, delays, times out after charging, and repeats,
    reorders and loses webhooks.
    """
    import uvloop

    from flashsale import logs, settings
    from flashsale.partners.payments.sandbox import server

    chosen = settings.load()
    logs.set_up(chosen.log_level, part="payments-sandbox")
    directory = (data_dir or chosen.data_dir / "payments").absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if webhook_url is not None and not webhook_url.startswith(("http://", "https://")):
        raise typer.BadParameter("an http or https URL", param_hint="--webhook-url")
    if pages_url is not None and not pages_url.startswith(("http://", "https://")):
        raise typer.BadParameter("an http or https URL", param_hint="--pages-url")
    known = (
        api_key or (chosen.payments_api_key.get_secret_value() if chosen.payments_api_key else None),
        webhook_secret
        or (chosen.payments_webhook_secret.get_secret_value() if chosen.payments_webhook_secret else None),
    )
    keys = server.keys_of(directory, *known)

    def tell(address: str) -> None:
        if as_json:
            told = {"pid": os.getpid(), "address": address, **keys._asdict()}
            logs.say(json.dumps(told))
        else:
            # A key that came from outside is known outside.
            made = [f"{name}: {key}" for name, key, given in zip(keys._fields, keys, known, strict=True) if not given]
            logs.say("\n".join([f"payments sandbox {address}", *made]))

    uvloop.run(server.run(port, directory, webhook_url, keys, tell, pages_url))


@app.command(epilog="Example: flashsale sandbox channel --port 12112")
def channel(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0: a free one.")] = 0,
    secret: Annotated[
        str,
        typer.Option("--secret", help="The endpoint's, as the engine told it; what is signed otherwise is refused."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print {pid, address} when it serves.")] = False,
) -> None:
    """A marketplace that hears what the engine tells its channels, and fails on request, until SIGTERM.

    Its address and /push is what `PUT /v1/channels/CHANNEL/endpoint` names; the secret in the answer is --secret here,
    or told to it by POST {address}/sandbox/secret. The engine needs FLASHSALE_WEBHOOK_ALLOW='["127.0.0.0/8"]'. GET
    {address}/stock, /orders and /pushes show what it was told; POST {address}/sandbox/faults makes it fail, stall,
    refuse orders, and take what it says it did not.
    """
    import uvloop

    from flashsale import logs, settings
    from flashsale.partners.channels.sandbox import server

    logs.set_up(settings.load().log_level, part="channel-sandbox")

    def tell(address: str) -> None:
        told = {"pid": os.getpid(), "address": address}
        logs.say(json.dumps(told) if as_json else f"channel sandbox {address}")

    try:
        uvloop.run(server.run(port, secret, tell))
    except OSError as fault:
        typer.echo(f"port {port} can't be used: {fault.strerror}", err=True)
        raise typer.Exit(1) from None


@app.command(epilog="Example: FLASHSALE_IDENTITIES_API_KEY=any flashsale sandbox identities --port 12113")
def identities(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0: a free one.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print {pid, address} when it serves.")] = False,
) -> None:
    """An identity provider that fails on request, until SIGTERM. Its key is FLASHSALE_IDENTITIES_API_KEY.

    Its address is FLASHSALE_IDENTITIES_URL for the engine. The first name that comes with a number is that person's;
    POST {address}/sandbox/people says it beforehand, and POST {address}/sandbox/faults makes the provider away.
    """
    import uvloop

    from flashsale import logs, settings
    from flashsale.partners.identities.sandbox import server

    chosen = settings.load()
    logs.set_up(chosen.log_level, part="identities-sandbox")
    if chosen.identities_api_key is None:
        raise typer.BadParameter("set FLASHSALE_IDENTITIES_API_KEY: the key that it takes, and the engine sends")

    def tell(address: str) -> None:
        told = {"pid": os.getpid(), "address": address}
        logs.say(json.dumps(told) if as_json else f"identities sandbox {address}")

    try:
        uvloop.run(server.run(port, chosen.identities_api_key.get_secret_value(), tell))
    except OSError as fault:
        typer.echo(f"port {port} can't be used: {fault.strerror}", err=True)
        raise typer.Exit(1) from None


@app.command(
    epilog="Example: flashsale sandbox carriers --port 12114 --auto 5 --events-url http://127.0.0.1:8080/v1/carriers"
)
def carriers(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0: a free one.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where its parcels lie; unset: `carriers` in the engine's.")
    ] = None,
    events_url: Annotated[
        str | None,
        typer.Option("--events-url", help="Where its events go, as /CARRIER/events below it; unset: they are asked."),
    ] = None,
    auto: Annotated[
        float,
        typer.Option("--auto", min=0, max=86_400, help="Seconds after which a parcel moves a step; 0: on command."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print {pid, address} when it serves.")] = False,
) -> None:
    """Carriers that book parcels, carry them, tell of them, and fail on request, until SIGTERM.

    Their address is FLASHSALE_CARRIERS_URL for the engine; both sign with FLASHSALE_CARRIERS_SECRET, `whsec_` and
    base64. GET {address}/sandbox/parcels lists what was booked; POST {address}/sandbox/parcels/WAYBILL/advance,
    deliver, fail, return or cancel moves a parcel, /sandbox/clock all of them, and /sandbox/faults makes the carriers
    be away, not answer what they did, and repeat, reorder and lose their events.
    """
    import sqlite3

    import uvloop

    from flashsale import logs, settings
    from flashsale.partners.carriers.sandbox import server

    chosen = settings.load()
    logs.set_up(chosen.log_level, part="carriers-sandbox")
    if chosen.carriers_secret is None:
        raise typer.BadParameter("set FLASHSALE_CARRIERS_SECRET: `whsec_` and base64, the same as the engine's")
    if events_url is not None and not events_url.startswith(("http://", "https://")):
        raise typer.BadParameter("an http or https URL", param_hint="--events-url")
    directory = (data_dir or chosen.data_dir / "carriers").absolute()
    secret = chosen.carriers_secret.get_secret_value()

    def tell(address: str) -> None:
        told = {"pid": os.getpid(), "address": address}
        logs.say(json.dumps(told) if as_json else f"carriers sandbox {address}")

    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / "parcels.sqlite"
        uvloop.run(server.run(port, secret, path, tell, events_url=events_url, step_s=auto))
    except (OSError, sqlite3.Error) as fault:
        typer.echo(f"the sandbox can't run on port {port} in {directory}: {fault}", err=True)
        raise typer.Exit(1) from None
