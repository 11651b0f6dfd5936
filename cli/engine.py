"""Commands about engines: `ask-engine`, does one accept what was measured here; `engine-args`, how one gives states."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.check import HIGHEST_PORT, TargetFolder
from cli.published import given_folder
from deepspec.artifacts import Artifact, open_artifact
from deepspec.catalog import find
from deepspec.errors import SpecError, TargetError
from deepspec.families import read_folder
from deepspec.formats import benchmarks
from deepspec.placement import Placement
from deepspec.plan.layers import layers_of
from deepspec.prepare.demo import BENCHMARKS as DEMO
from deepspec.store import Store
from flows.choices import Choices, named_endpoints
from infra.children.targets import ready_target
from infra.engines.states import StatesServer, staging_folder
from infra.settings import QUIET, named_root, scratch_dir, staging_limit, use
from infra.site import Site
from infra.terminal import Styled, say, show_table

app = typer.Typer()


@app.command("ask-engine")
def ask(
    scores: Annotated[str, typer.Argument(help="Scores: a ref, kind/address, or a start of it.")],
    endpoint: Annotated[str, typer.Option(help="URL up to /v1 of an engine that serves target and draft.")],
    model: Annotated[str, typer.Option(help="Name under which it serves the target.")],
    plain: Annotated[str | None, typer.Option(help="URL of an engine that serves the target alone.")] = None,
    samples: Annotated[int, typer.Option(help="Questions asked.", min=1)] = 16,
    benchmarks_dir: Annotated[Path | None, typer.Option(help="Where the benchmark files lie.")] = None,
    target: TargetFolder = None,
    root: Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Ask an engine the questions of published scores; exit code 1 where it does not accept what was measured here."""
    del debug
    store = Store(named_root(root))
    artifact = open_artifact(store, find(store, scores if "/" in scores else f"scores/{scores}"), scratch_dir())
    placement = Placement(scratch=scratch_dir(), locations=locations(benchmarks_dir))
    folder = given_folder(target) or _noted(artifact)
    drafting, *alone = named_endpoints([endpoint, *([plain] if plain else [])], model, None)
    from deepspec.benchmark.asked import first_turns  # loads torch: not before what is named was found
    from deepspec.serving.check import check_engine
    from deepspec.target.load import load_template

    asked = first_turns(artifact, placement, load_template(folder), samples)
    found = check_engine(drafting, alone[0] if alone else None, asked, artifact.manifest.spec["max_new_tokens"])
    show_table(f"{artifact.prefix}: here and there", [found.row()])
    if found.warning:
        say(Styled("warning:", "bold red"), f" {found.warning}")
    raise typer.Exit(0 if found.agrees else 1)


@app.command("carry-states")
def carry(
    engine: Annotated[str, typer.Argument(help="URL up to /v1 of an engine on this machine that gives states.")],
    root: Annotated[
        str,
        typer.Option(
            help="What the run sees, too: a store (s3://bucket/prefix, or a shared folder); or, tried out only, "
            "mooncake://HOST:PORT of a master: states stay in this machine's memory (DEEPSPEC_STAGING_GB)."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=HIGHEST_PORT)] = 8100,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Stand before an ENGINE and put its states into a store, for a run on a machine that shares no folder with it."""
    del debug
    named_endpoints([engine], "any", option="ENGINE")
    from aiohttp import web

    from deepspec.depots.depot import depot_at
    from deepspec.states.carrier import Carrier  # loads torch
    from deepspec.states.stored import FOLDER

    use(QUIET)
    store = depot_at(named_root(root), staging_limit())
    store.check_writable()
    say(
        f"states of {engine} go to {store.uri(FOLDER)}; give the run --endpoint http://{host}:{port}/v1; Ctrl-C ends it"
    )
    try:
        web.run_app(Carrier(engine, store, say).app(), host=host, port=port, print=None, access_log=None)
    except OSError as error:
        raise SpecError(f"cannot listen on {host}:{port}: {error.strerror}; give another --host or --port") from error


def show_arguments(choices: Choices, site: Site, *, staging: Path | None, host: str, port: int) -> None:
    """Print the command line of a vLLM server that gives the states of a plan's cache, or of its training.

    Raises:
        TargetError: the target is on the hub: its folder on the engine's machine has to be given.
    """
    plan = choices.plan
    if plan.target.on_hub:
        raise TargetError(
            f"target {plan.target.name} is on the hub, and an engine is started with a folder; fetch it where the "
            f"engine runs (hf download {plan.target.model} --local-dir FOLDER), and give --target FOLDER"
        )
    files = ready_target(plan.target, plan.target.name)
    folder = staging or staging_folder(site.placement.scratch)
    quantized = plan.train.engine_quantization or plan.cache.engine_quantization
    layers = layers_of(plan, read_folder(files.folder).num_layers)
    options = plan.cache.model_copy(update={"engine_quantization": quantized, "layers": layers})
    answers = plan.regenerate.sampling.max_tokens if plan.cache.while_answering else 0
    server = StatesServer(options=options, folder=files.folder, staging=folder.resolve(), answers=answers)
    say(server.command(host, port))


def locations(folder: Path | None) -> dict[str, str]:
    """Return digest -> place of the demo's benchmarks and of those in a folder."""
    found = [benchmarks.find_benchmarks(each) for each in (DEMO, folder) if each is not None]
    return {digest: place for each in found for digest, place in each.locations.items()}


def _noted(scores: Artifact) -> Path:
    noted = scratch_dir() / "targets" / str(scores.counts["target"])
    if not noted.is_file():
        raise SpecError(f"the target of {scores.prefix} is not known here; give --target FOLDER")
    return Path(json.loads(noted.read_text()))
