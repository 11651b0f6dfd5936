"""Commands about the Prefect server: start and stop it, deploy to it, list its runs."""

import subprocess
import sys
import time
from contextlib import suppress
from typing import Annotated

import typer

from cli.check import HIGHEST_PORT, AsJson
from deepspec.errors import ChildError, SpecError
from infra.settings import data_dir, environment, prefect_api
from infra.terminal import say, show_json, show_table

app = typer.Typer()

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
LOOPBACK = "127.0.0.1"


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a password.")] = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port of the server.", min=1, max=HIGHEST_PORT)] = 4200,
    s3: Annotated[bool, typer.Option("--s3", help="Also an S3 server in memory, as the store.")] = False,
    engine: Annotated[str | None, typer.Option(help="Also an engine that serves this target preset.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once everything runs; see: deepspec down.")] = False,
    debug: Debug = False,
) -> None:
    """Run a Prefect server, a worker and every deployment, until Ctrl-C or `deepspec down`."""
    del debug
    from infra.server.up import WantedServer  # loads Prefect
    from infra.server.up import up as run

    if detach:
        _detached([word for word in sys.argv[1:] if word != "--detach"])
        return
    with suppress(KeyboardInterrupt):  # Ctrl-C and `down` are how it ends
        run(WantedServer(host=host, port=port, s3=s3, engine=engine), say)
    say("stopped")


@app.command()
def down(debug: Debug = False) -> None:
    """Stop what `deepspec up` started, and nothing else."""
    del debug
    from infra.server.up import down as stop  # loads Prefect

    say("stopped" if stop() else f"nothing runs from {data_dir()}")


@app.command()
def deploy(
    environment: Annotated[str, typer.Argument(help="local, gpu, slurm or kubernetes.")] = "local",
    secret: Annotated[
        list[str] | None, typer.Option(help="VARIABLE=BLOCK: runs have what that Secret block holds; repeatable.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make or update pool, limits, result storage, automations and deployments on the server."""
    del debug
    from infra.server.setup import set_up  # loads Prefect

    pool = set_up(server(), environment, dict(_pair(told) for told in secret or ()))
    say(f"deployed {environment} to {server()}; start a worker with: prefect worker start --pool {pool}")


@app.command()
def runs(
    tag: Annotated[list[str] | None, typer.Option(help="target:NAME, algorithm:NAME, plan:DIGEST; repeatable.")] = None,
    limit: Annotated[int, typer.Option(help="Newest runs to show.", min=1, max=200)] = 20,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the newest runs: what they make, how they stand, how long they took."""
    del debug
    from infra.server.runs import newest_runs  # loads Prefect

    columns, api = ("run", "flow", "state", "started", "took", "tags", "id"), server()
    found = [dict(zip(columns, row, strict=True)) for row in newest_runs(api, tag or [], limit)]
    if as_json:
        show_json({"server": api, "runs": [{**row, "tags": row["tags"].split()} for row in found]})
    else:
        show_table(f"runs on {api}", found, columns)


def server() -> str:
    """Return the server that the environment names, or the one that `up` runs.

    Raises:
        SpecError: there is none, or the one that is named does not answer.
    """
    from infra.server.api import reached  # loads Prefect
    from infra.server.up import running_api

    if named := prefect_api():
        return reached(named)
    found = running_api()
    if found is None:
        raise SpecError("no Prefect server: start one with deepspec up, or set PREFECT_API_URL")
    return found


def _pair(told: str) -> tuple[str, str]:
    variable, equals, block = told.partition("=")
    if not (variable and equals and block):
        raise SpecError(f"--secret {told!r}: wanted VARIABLE=BLOCK, such as AWS_SECRET_ACCESS_KEY=s3-secret")
    return variable, block


def _detached(words: list[str]) -> None:
    from infra.server.up import running_api  # loads Prefect

    log = data_dir() / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command, env = [sys.executable, "-m", "cli.main", *words], environment({})
    with log.open("wb") as output:
        started = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
    while running_api() is None:
        if started.poll() is not None:
            raise ChildError("deepspec up", started.returncode, log.read_text())
        time.sleep(0.5)
    say(log.read_text().strip())
