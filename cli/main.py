"""The command line: `deepspec plan | run | status | …`, one command per stage, tools beside."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import brought, caches, check, doctor, serve, shelf, show, simulated, tools
from cli import engine as cli_engine
from cli import reevaluate as cli_reevaluate
from cli import report as cli_report
from cli import serve_bench as cli_serve_bench
from cli import sweep as cli_sweep
from cli.start import next_step
from deepspec.catalog import catalog
from deepspec.errors import EXIT_INPUT, SIGNALLED, DeepSpecError, SpecError
from deepspec.formats.recipe import AlgorithmName
from deepspec.plan import presets
from deepspec.stages import STAGES
from deepspec.store import Store
from flows.choices import Choices, choose_site, managed_engines, named_endpoints
from infra.engines.managed import ENGINES, LOOPBACK
from infra.listeners import attached
from infra.settings import default_root
from infra.site import Site
from infra.terminal import Styled, complain, say

app = typer.Typer(
    name="deepspec",
    pretty_exceptions_enable=False,
)

Target = Annotated[
    str,
    typer.Option(
        help="Preset, hub id ORG/MODEL, folder, or own YAML file.", autocompletion=lambda: presets.names("targets")
    ),
]
Algorithm = Annotated[AlgorithmName, typer.Option(help="What the draft proposes, and how it is trained.")]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="Dataset preset; default: demo, unless prompts are given.",
        autocompletion=lambda: presets.names("datasets"),
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        help="Size preset (minutes, laptop, hour); default: the published sizes.",
        autocompletion=lambda: presets.names("sizes"),
    ),
]
Prompts = Annotated[list[str] | None, typer.Option(help="JSONL or parquet file, URL, or hub dataset id; repeatable.")]
Answers = Annotated[str | None, typer.Option(help="Answers that the target gave before: nothing is asked.")]
Draft = Annotated[str | None, typer.Option(help="Checkpoint's folder, hub id, or published draft: nothing is trained.")]
BenchmarksDir = Annotated[str | None, typer.Option(help="Folder of benchmark files with rows {'turns': [...]}.")]
Override = Annotated[list[str] | None, typer.Option("--set", help="section.field=value; repeatable.")]
Smoke = Annotated[int | None, typer.Option(help="Run everything on this many samples.", min=8)]
Root = Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, auto; spread lays a large target over all cards.")]
Threads = Annotated[int | None, typer.Option(help="Threads per process.", min=1)]
Processes = Annotated[int, typer.Option(help="Training processes.", min=1)]
MicroBatch = Annotated[int | None, typer.Option(help="Rows of a training pass; default: as memory allows.", min=1)]
Batch = Annotated[int | None, typer.Option(help="Samples decoded together; default: as memory allows.", min=1)]
Pack = Annotated[bool, typer.Option("--pack", help="Train on short samples packed into rows; pays for Eagle3.")]
Profile = Annotated[bool, typer.Option("--profile", help="Keep a torch.profiler trace of three training steps.")]
TrackerNames = Annotated[list[str] | None, typer.Option("--tracker", help="tensorboard, wandb, mlflow, …; repeatable.")]
EndpointUrls = Annotated[list[str] | None, typer.Option("--endpoint", help="Engine URL up to /v1; repeatable.")]
Model = Annotated[str | None, typer.Option(help="Name under which the endpoints serve the target.")]
KeyEnv = Annotated[str | None, typer.Option(help="NAME of the environment variable with the endpoints' key.")]
KeyBlock = Annotated[str | None, typer.Option(help="NAME of the Prefect Secret block with the endpoints' key.")]
EngineName = Annotated[str | None, typer.Option(help=f"Engine that the run starts itself: {', '.join(ENGINES)}.")]
Engines = Annotated[
    int | None, typer.Option(help="Engines to start; default: one, or a small model's up to four on the cores.", min=1)
]
Gpus = Annotated[list[str] | None, typer.Option("--gpu", help="One engine on GPU 0, or on 0,1; repeatable.")]
EngineArgs = Annotated[str, typer.Option(help="More words for each engine's command.")]
OnePass = Annotated[
    bool, typer.Option("--states-while-answering", help="Answers and states of the cache in one pass, from vLLM.")
]
KeepErrors = Annotated[bool, typer.Option("--keep-errors", help="Publish rows that failed, instead of stopping.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all logs.")]

Hardware = Annotated[
    list[str] | None,
    typer.Option(
        help="Machine: h100, l40sx4, own YAML file; repeatable.", autocompletion=lambda: presets.names("hardware")
    ),
]

Staging = Annotated[Path | None, typer.Option(help="Folder for states that engine and run both see.", file_okay=False)]
Host = Annotated[str, typer.Option(help="Address that the engine listens on.")]
Port = Annotated[int, typer.Option(help="Port that the engine listens on.", min=1, max=check.HIGHEST_PORT)]

STOPPED = (SIGNALLED + signal.SIGINT, SIGNALLED + signal.SIGTERM)
"""Exit codes of a command that was asked to end; a Ctrl-C has become the first of them in typer."""

Action = Callable[..., None]
"""`action(choices, site)`, and by name the options that it alone has."""


def command(action: Action, **more: Parameter) -> Callable[..., None]:
    """Return a command with the options that all commands about a run share, and with more of its own.

    Args:
        action: what it does; the values of its own options are given by name.
        more: name -> option of this command alone.
    """

    def run(
        context: typer.Context,
        target: Target = "smollm2-135m",
        algorithm: Algorithm = "dspark",
        dataset: Dataset = None,
        size: Size = None,
        prompts: Prompts = None,
        answers: Answers = None,
        draft: Draft = None,
        benchmarks_dir: BenchmarksDir = None,
        states_while_answering: OnePass = False,
        override: Override = None,
        smoke: Smoke = None,
        root: Root = None,
        device: Device = "cpu",
        threads: Threads = None,
        processes: Processes = 1,
        micro_batch: MicroBatch = None,
        batch: Batch = None,
        pack: Pack = False,
        profile: Profile = False,
        tracker: TrackerNames = None,
        endpoint: EndpointUrls = None,
        model: Model = None,
        key_env: KeyEnv = None,
        key_block: KeyBlock = None,
        engine: EngineName = None,
        engines: Engines = None,
        gpu: Gpus = None,
        engine_args: EngineArgs = "",
        keep_errors: KeepErrors = False,
        debug: Debug = False,
        **own: Any,
    ) -> None:
        del debug  # read before anything is imported, see main
        if context.invoked_subcommand is not None:
            return
        refuse_empty(context.params)
        choices = Choices.model_validate(
            {
                "target": target,
                "algorithm": algorithm,
                "dataset": dataset,
                "size": size,
                "prompts": prompts or (),
                "answers": answers,
                "draft": draft,
                "benchmarks_dir": benchmarks_dir,
                "states_while_answering": states_while_answering,
                "overrides": override or (),
                "smoke": smoke,
            }
        )
        site = choose_site(
            root,
            named_endpoints(endpoint or [], model, key_env, key_block),
            managed_engines(engine, engines, gpu or (), engine_args),
            device=device,
            threads=threads,
            processes=processes,
            micro_batch=micro_batch,
            batch=batch,
            pack=pack,
            profile=profile,
            trackers=tuple(tracker or ()),
            keep_errors=keep_errors,
        )
        action(choices, site, **own)

    shared = [each for each in signature(run).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    run.__dict__["__signature__"] = Signature([*shared, *more.values()])  # what typer reads
    run.__annotations__ |= {name: option.annotation for name, option in more.items()}
    return run


def refuse_empty(options: Mapping[str, Any]) -> None:
    """Refuse an option that was given as nothing, as by a variable of a script that was never set.

    Raises:
        SpecError: one is.
    """
    for name in options.keys() - {"engine_args", "override"}:
        if "" in (options[name] if isinstance(options[name], list | tuple) else [options[name]]):
            raise SpecError(f"--{name.replace('_', '-')} is empty: leave it out, or give it a value")


def option(name: str, kind: Any, default: Any) -> dict[str, Parameter]:
    """Return an option of one command alone, by its name."""
    return {name: Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)}


@app.callback(invoke_without_command=True)
def begin(
    context: typer.Context,
    told_version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    """Draft models for speculative decoding: from prompts to a release that engines serve."""
    if told_version:
        say(f"deepspec {version('deepspec')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        store = Store(default_root())
        say(Styled(f"store {store.root}", "bold"))
        for line in next_step(catalog(store)):
            say(line)
        say("All commands: deepspec --help. What is here: deepspec status.")


def run_all(choices: Choices, site: Site) -> None:
    """Build a draft: every stage, fresh ones from the store."""
    plan = choices.plan
    site = show.check_input(plan, site)
    show.forecast(plan, site)
    start = time.monotonic()
    choices = brought.adopted(choices, site)
    from flows.draft import build_draft  # Prefect takes a second to import: not before the input is checked
    from infra.children.targets import convert_target
    from infra.server.api import prefect_api

    ready = partial(convert_target, plan.target, plan.target.name, say)
    with attached(), prefect_api(say, meanwhile=ready):
        built = build_draft(choices, site)
    show.summary(built, site, time.monotonic() - start)


def run_stage(name: str, choices: Choices, site: Site) -> None:
    """Make one stage's artifact from the published inputs."""
    site = show.check_input(choices.plan, site, name)
    choices = brought.adopted(choices, site)
    from flows.stages import STAGE_FLOWS  # as above
    from infra.server.api import prefect_api

    with attached(), prefect_api(say):
        step = STAGE_FLOWS[name](choices, site)
    say(f"{step.stage}: {step.state}, {step.seconds:.1f} s, {step.ref.uri}")


def show_plan(
    choices: Choices,
    site: Site,
    *,
    hardware: list[str] | None,
    simulate: bool,
    assume: list[str] | None,
    as_json: bool,
) -> None:
    """Show what a run would cost; nothing is spent."""
    if assume and not simulate:
        raise SpecError("--assume says what a simulation takes for given; give --simulate, too")
    plan = choices.plan
    if hardware:
        plan = plan.but(limits=plan.limits.but(hardware=hardware[0]))
    show.plan(plan, site, hardware or (), assumed=(assume or ()) if simulate else None, as_json=as_json)


app.command("run", help="Build a draft: every stage, in order; what is published and fresh is not made again.")(
    command(run_all)
)
app.command("plan", help="Show what a run will cost, before anything is spent.")(
    command(
        show_plan,
        **option("hardware", Hardware, None),
        **option("simulate", simulated.Simulate, False),
        **option("assume", simulated.Assume, None),
        **option("as_json", check.AsJson, False),
    )
)
app.command("doctor", help="Check machine, store, target and engine for a run.")(
    command(doctor.examine, **option("as_json", check.AsJson, False))
)
app.command("engine-args", help="Print the command line of a vLLM server that gives states.")(
    command(
        cli_engine.show_arguments,
        **option("staging", Staging, None),
        **option("host", Host, LOOPBACK),
        **option("port", Port, 8000),
    )
)
app.command("sweep", help="Train drafts that differ in some settings, from several seeds, and show a leaderboard.")(
    command(
        cli_sweep.sweep,
        **option("row", cli_sweep.Row, None),
        **option("seeds", cli_sweep.Seeds, 3),
        **option("equal", cli_sweep.Equal, "steps"),
        **option("by", cli_sweep.By, "walked"),
        **option("timed", cli_sweep.Timed, False),
        **option("all_seeds", cli_sweep.AllSeeds, False),
        **option("as_json", check.AsJson, False),
    )
)
for _stage in STAGES.values():
    _help = f"Only this stage: publish {_stage.kind} from the published inputs."
    _run = command(partial(run_stage, _stage.name))
    if _stage.name == "cache":  # a command with commands below it
        caches.app.callback(invoke_without_command=True, help=f"{_help} Below it: verify, stat, import.")(_run)
        app.add_typer(caches.app, name=_stage.name)
    else:
        app.command(_stage.name, help=_help)(_run)
app.add_typer(shelf.app)
app.add_typer(tools.app)
app.add_typer(check.app)
app.add_typer(cli_report.app)
app.add_typer(cli_reevaluate.app)
app.add_typer(cli_engine.app)
app.add_typer(cli_serve_bench.app)
app.add_typer(serve.app)


def main() -> None:
    """Run a command; errors of the tree become one line and an exit code, and one that is asked to end says so."""
    debug = "--debug" in sys.argv
    signal.signal(signal.SIGTERM, _end)
    if not debug:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    try:
        app()
    except DeepSpecError as error:
        if debug:
            raise
        complain(Styled("error:", "bold red"), f" {error}")
        sys.exit(error.status)
    except OSError as error:  # a file or folder that nobody names as input: it may not be read, or its name is too long
        if debug or error.filename is None:
            raise
        complain(Styled("error:", "bold red"), f" {error}; --debug shows where")
        sys.exit(EXIT_INPUT)
    except SystemExit as end:
        if end.code in STOPPED:
            complain("stopped; the same command goes on from here")
        raise


def _end(number: int, _: object) -> None:
    sys.exit(SIGNALLED + number)


if __name__ == "__main__":
    main()
