"""What can be asked of the gateway from a shell? `inference-gateway --help` lists it; this module assembles it.

The commands on tenants, keys and usage are in `sidecar/commands/`. What only one command needs is imported by it:
`tenant list` loads no gRPC.
"""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sidecar.commands import (
    audit,
    key,
    ledger,
    limits,
    model,
    organization,
    plan,
    requests,
    role,
    router,
    signing_key,
    subject,
    tenant,
    webhook,
    workload,
)
from sidecar.commands.admin_settings import store_settings
from sidecar.commands.cancel import cancel
from sidecar.commands.reconcile import reconcile
from sidecar.commands.session import PlainErrors, fail
from sidecar.commands.usage import usage
from store.field_error import FieldError

app = typer.Typer(
    name="inference-gateway",
    cls=PlainErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A sidecar that turns a plain Envoy into a tenant-aware front door for model inference.",
    epilog="The administrative commands read DATABASE_URL and GATEWAY_KEY_PEPPER; beside a running `up`, they find "
    "them in its state folder (GATEWAY_STATE, .run by default).",
)
envoy = typer.Typer(no_args_is_help=True, help="Envoy's side: its configuration.")
for noun, commands in {
    "organization": organization.app,
    "tenant": tenant.app,
    "plan": plan.app,
    "limits": limits.app,
    "model": model.app,
    "role": role.app,
    "key": key.app,
    "workload": workload.app,
    "subject": subject.app,
    "webhook": webhook.app,
    "signing-key": signing_key.app,
    "router": router.app,
    "requests": requests.app,
    "audit": audit.app,
    "ledger": ledger.app,
}.items():
    app.add_typer(commands, name=noun)
app.add_typer(envoy, name="envoy")
app.command("usage")(usage)
app.command("cancel")(cancel)
app.command("reconcile")(reconcile)


@app.command()
def migrate() -> None:
    """Bring the database's schema to the newest revision.

    Safe to repeat, and to run several times at once.
    """
    from store.migration import migrate as migrate_schema  # noqa: PLC0415 - only this command needs Alembic

    dsn = store_settings().database_url.get_secret_value()
    typer.echo(f"The schema is at revision {asyncio.run(migrate_schema(dsn))}.")


@app.command()
def up() -> None:
    """Run the whole gateway on this machine, servers included.

    Those are Envoy, Postgres, Redis, a stand-in Router and the sidecar; Ctrl-C ends them.
    """
    from sidecar import launch  # noqa: PLC0415 - only this command needs the servers

    raise typer.Exit(launch.up())


@app.command()
def serve() -> None:
    """Run the sidecar that Envoy calls.

    Each worker listens on a Unix socket of its own.
    """
    from sidecar import launch  # noqa: PLC0415 - only this command needs gRPC

    raise typer.Exit(launch.serve())


@envoy.command("render")
def render(
    *,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the public TLS listener.")] = 8443,
    address: Annotated[str, typer.Option(help="Address of the public listener.")] = "127.0.0.1",
    tls_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the listener's certificate and key.")],
    socket_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the workers' Unix sockets.")],
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker sockets there are.")] = 2,
    router: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the Router listens.")],
    admin_socket: Annotated[Path, typer.Option(metavar="PATH", help="Unix socket of Envoy's admin interface.")],
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Largest request body.")] = 4 * 1024 * 1024,
    client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CA of client certificates; none are asked for, when left out.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Browser origin that may call; may be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write; stdout, when left out.")] = None,
) -> None:
    """Write the shipped Envoy configuration.

    Your addresses, given as options, are in it.
    """
    from sidecar import envoy_config  # noqa: PLC0415 - only this command needs it

    addresses = envoy_config.EnvoyAddresses(
        port=port,
        address=address,
        tls_dir=tls_dir,
        socket_dir=socket_dir,
        workers=workers,
        router=router,
        admin_socket=admin_socket,
        max_body_bytes=max_body_bytes,
        client_ca=client_ca,
        cors_origins=tuple(_origin(text) for text in cors_origin or ()),
    )
    try:
        text = envoy_config.render(addresses)
    except ValueError as error:
        raise FieldError("--router", str(error)) from None
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text)
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}")


def _origin(text: str) -> str:
    from sidecar.origins import require_origin  # noqa: PLC0415 - only this command needs it

    try:
        return require_origin(text)
    except ValueError as error:
        raise FieldError("--cors-origin", str(error)) from None


def main() -> None:
    """Run the command line."""
    app()
