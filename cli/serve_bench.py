"""The command `deepspec serve-bench`: an engine with and without a release's draft, under load."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.engine import locations
from cli.published import opened
from deepspec.artifacts import Artifact, ArtifactRef, open_artifact, read_manifest
from deepspec.catalog import refs
from deepspec.disk import checksum
from deepspec.errors import EngineError, SpecError
from deepspec.formats.serve_options import ServeOptions
from deepspec.formats.served import Tried, UnderLoad, changes, incomparable
from deepspec.formats.speed import SPEED, read_speed
from deepspec.placement import Placement
from deepspec.plan import presets
from deepspec.plan.plan import TargetPlan
from deepspec.report import Report
from deepspec.specs import Spec, TargetId
from deepspec.stages import STAGES, Work, materialize
from deepspec.target.identity import identify
from deepspec.target.source import TargetFiles
from flows.choices import named_endpoints
from infra.children.targets import ready_target
from infra.engines.serving import ServingSettings, serving_draft
from infra.listeners import Listeners, attached, terminal
from infra.settings import scratch_dir, secret
from infra.terminal import Styled, say, show_table

app = typer.Typer()


@app.command("serve-bench")
def serve_bench(
    release: Annotated[str, typer.Argument(help="A release: a ref, kind/address, or the start of an address.")],
    loads: Annotated[str, typer.Option(help="Requests at once, such as 1,2,4,8; empty: none.")] = "1,2,4,8",
    rates: Annotated[str, typer.Option(help="Requests per second that arrive by chance, such as 0.5,2.")] = "",
    contexts: Annotated[str, typer.Option(help="Tokens of the prompts, levels of one length each.")] = "",
    requests: Annotated[int, typer.Option(help="Measured requests of a level, at least.", min=2)] = 16,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 64,
    ends: Annotated[Literal["fixed", "natural"], typer.Option(help="All answers so long, or as they end.")] = "fixed",
    checked: Annotated[int, typer.Option(help="Prompts of the evaluation that are asked first, in turn.", min=0)] = 16,
    prompts: Annotated[Path | None, typer.Option(help="Rows {'turns': [...]} to ask, instead of benchmarks.")] = None,
    benchmarks_dir: Annotated[Path | None, typer.Option(help="Where the release's benchmark files lie.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL up to /v1 of an engine with target and draft.")] = None,
    plain: Annotated[str | None, typer.Option(help="URL up to /v1 of an engine with the target alone.")] = None,
    model: Annotated[str | None, typer.Option(help="Name under which the engines serve the target.")] = None,
    key_env: Annotated[str | None, typer.Option(help="NAME of the environment variable with their key.")] = None,
    attempt: Annotated[
        list[str] | None, typer.Option("--try", help="N_MAX:P_MIN of llama.cpp to try besides; repeatable.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Preset, hub id, folder; default: as the release says.")] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(help="GGUF file of the target for the engine that is started; default: a GGUF target's."),
    ] = None,
    before: Annotated[str | None, typer.Option(help="Release to compare with; default: the ref baseline.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of an engine that is started.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, fillings and intervals.", min=0)] = 0,
    root: Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Measure an engine with and without a release's draft under load; publish the release with what was found.

    Exit code 1 where it does not accept what was measured here, or is slower than the release before.
    """
    del debug
    asked = None if prompts is None else _file(prompts, "--prompts", "rows {'turns': [text, ...]}")
    told = {
        "loads": _numbers(loads, "--loads"), "rates": _numbers(rates, "--rates"),
        "contexts": _numbers(contexts, "--contexts"), "requests": requests, "max_tokens": max_tokens,
        "ends": ends, "checked": checked,
        "prompts": "" if asked is None else checksum(asked), "seed": seed,
        "as_of": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    options = presets.validated(ServeOptions, told, "the loads")
    if not options.wanted:
        raise SpecError("neither --loads nor --rates is given; wanted such as --loads 1,2,4,8")
    urls = [each for each in (endpoint, plain) if each is not None]
    if plain and not endpoint:
        raise SpecError("--plain is the engine without the draft; give the one with it, too: --endpoint URL")
    engines = _with_keys(named_endpoints(urls, model, key_env))
    where = {**locations(benchmarks_dir), **({} if prompts is None else {options.prompts: str(prompts.resolve())})}
    placement = Placement(
        scratch=scratch_dir(), threads=threads, drafting=engines[:1], endpoints=engines[1:], locations=where
    )
    bench = _Bench.of(opened(release, root, "release"), target, placement, options)
    if gguf is not None:
        served = _file(gguf, "--gguf", "the target as llama.cpp reads it")
        bench = replace(bench, files=replace(bench.files, gguf=served))
    with attached():
        report = Listeners(terminal("serve-bench"))
        found = bench.measured(report, [_setting(each) for each in attempt or ()])
        found = _compared(found, bench.release, before, root)
        made = bench.published(found, report)
    raise typer.Exit(_tell(found, made))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    """A release, and what it is measured with."""

    release: Artifact
    inputs: Mapping[str, Artifact]
    """What it was made from, its forms taken from the release itself."""
    files: TargetFiles
    placement: Placement
    options: ServeOptions

    @classmethod
    def of(cls, release: Artifact, target: str | None, placement: Placement, options: ServeOptions) -> "_Bench":
        """Open what a release was made from, and find its target.

        Raises:
            SpecError: the target is another one.
        """
        made_from = release.manifest.inputs
        inputs = {name: open_artifact(release.store, ref, placement.scratch) for name, ref in made_from.items()}
        wanted = TargetId.model_validate(inputs["speed"].manifest.spec["target"]).digest
        name = target or str(release.manifest.spec["target"])
        source = presets.validated(TargetPlan, presets.target(name).get("target", {}), f"--target {name}")
        files = ready_target(source, source.name)
        found = identify(files.folder, placement.scratch / "hashes.json").digest
        if found != wanted:
            raise SpecError(
                f"{release.prefix} is for target {wanted}, and {name} is {found}; give its target: --target"
            )
        located = placement.model_copy(update={"locations": {**placement.locations, wanted: str(files.folder)}})
        return cls(
            release=release, inputs={**inputs, "exports": release}, files=files, placement=located, options=options
        )

    def measured(self, report: Report, settings: list[tuple[int, float]]) -> UnderLoad:
        """Return what the engines give, those of other settings beside."""
        from deepspec.benchmark.served import subject  # loads torch
        from deepspec.serving.measure import under_load, with_settings
        from deepspec.target.load import load_template

        template = load_template(self.files.folder)

        def asked(placement: Placement) -> Any:
            return subject(self.inputs, template, self.files.folder, placement, self.options)

        started = not self.placement.drafting
        if settings and not started:
            raise SpecError("--try starts engines with other settings, and --endpoint names running ones; give one")
        with self._serving(report, ServingSettings()) as placement:
            found = under_load(asked(placement), self.options, report).model_copy(update={"started": started})
        tried: list[Tried] = []
        for tokens, least in settings:
            report.log(f"n_max {tokens}, p_min {least:g}")
            with self._serving(report, ServingSettings(draft_tokens=tokens, least=least)) as placement:
                tried += with_settings(asked(placement), self.options, tokens, least)
        return found.model_copy(update={"tried": tuple(tried)})

    @contextmanager
    def _serving(self, report: Report, settings: ServingSettings) -> Iterator[Placement]:
        """Yield the placement with engines: those that run, or the embedded one for as long as the block does."""
        widened = ServingSettings(
            slots=self.options.widest,
            tokens=self.options.room,
            draft_tokens=settings.draft_tokens,
            least=settings.least,
        )
        folder = self.placement.scratch / "serve-bench" / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        with serving_draft(self.inputs, self.placement, self.files.gguf, folder, report, widened) as placement:
            if not placement.drafting:
                raise EngineError(
                    f"no engine can be started for {self.release.prefix}; give --gguf FILE where it wants one, or "
                    "start them yourself and give --endpoint URL (with the draft), --plain URL (without it) and "
                    "--model NAME"
                )
            yield placement

    def published(self, found: UnderLoad, report: Report) -> ArtifactRef:
        """Publish speed and release anew, with what was found, and return the release."""
        from deepspec.benchmark.served import publish_served
        from deepspec.benchmark.spec import BenchmarkSpec

        speed, inputs = self.inputs["speed"], self.release.manifest.inputs
        spec = BenchmarkSpec.model_validate(speed.manifest.spec).but(serve=self.options)
        work = self._work("benchmark", spec, speed.manifest.inputs, report)
        ref = publish_served(speed, found, spec, work.out(), work.stage.version)
        again = STAGES["release"].spec.model_validate(self.release.manifest.spec)
        return materialize(self._work("release", again, {**inputs, "speed": ref}, report))

    def _work(self, stage: str, spec: Spec, inputs: Mapping[str, ArtifactRef], report: Report) -> Work:
        return Work(
            stage=STAGES[stage],
            spec=spec,
            inputs=inputs,
            store=self.release.store,
            placement=self.placement,
            report=report,
        )


def _compared(found: UnderLoad, release: Artifact, before: str | None, root: str | None) -> UnderLoad:
    """Return the measurement with what has changed since that of another release, where there is one."""
    named = refs(release.store).get("baseline")
    if before is None and (named is None or named.kind != "release" or named.address == release.manifest.address):
        return found
    earlier = opened(before or "baseline", root, "release")
    manifest = read_manifest(earlier.store, "speed", earlier.manifest.inputs["speed"].address)
    if manifest is None:
        raise SpecError(f"the speed of {earlier.prefix} is gone; take another release with --before")
    old = read_speed(Artifact(earlier.store, manifest, scratch_dir()).path(SPEED)).under_load
    if old is None:
        if before is None:
            return found
        raise SpecError(
            f"{earlier.prefix} was not measured under load; measure it first: deepspec serve-bench {before}"
        )
    if why := incomparable(old, found):
        told = f"Not compared with {earlier.prefix}: {why}."
        return found.model_copy(update={"warnings": (*found.warnings, told)})
    return found.model_copy(update={"before": earlier.manifest.address, "changes": changes(old, found)})


def _tell(found: UnderLoad, made: ArtifactRef) -> int:
    """Show what was found and return the exit code."""
    for each in found.warnings:
        say(Styled("warning:", "bold red"), f" {each}")
    if found.check is not None:
        show_table("here and there", [found.check.row()])
    show_table("under load", found.rows())
    say(found.break_even_text())
    for title, rows in (
        ("what to propose", found.proposal_rows()),
        ("other settings", found.tried_rows()),
        ("against the release before", found.change_rows()),
    ):
        if rows:
            show_table(title, rows)
    say(f"published {made.prefix}")
    worse = any(each.verdict == "slower" for each in found.changes)
    return 1 if worse or (found.check is not None and not found.check.agrees) else 0


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",") if each.strip()]
    except ValueError as error:
        raise SpecError(f"{option} {text!r}: wanted numbers with commas between them, such as 1,2,4") from error


def _setting(text: str) -> tuple[int, float]:
    tokens, _, least = text.partition(":")
    try:
        return int(tokens), float(least or 0)
    except ValueError as error:
        raise SpecError(f"--try {text!r}: wanted N_MAX:P_MIN, such as 2:0.5") from error


def _file(path: Path, option: str, wanted: str) -> Path:
    if not path.is_file():
        raise SpecError(f"{option} {path}: no such file; wanted {wanted}")
    return path


def _with_keys(endpoints: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return endpoints with the keys that they name."""
    return tuple(
        each.model_copy(update={"api_key": secret(each.api_key_env)}) if each.api_key_env else each
        for each in endpoints
    )
