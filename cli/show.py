"""What the command line shows: a plan with its cost, progress while a run works, a summary at the end."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.counted import counted
from cli.simulated import rows as simulated_rows
from cli.simulated import simulated
from deepspec.artifacts import ArtifactRef, read_manifest
from deepspec.catalog import held_bytes
from deepspec.errors import BudgetError, NotPublishedError
from deepspec.formats.engine_speed import engine_name
from deepspec.plan import presets, words
from deepspec.plan.budget import answering_lines, check_limits, passed_limit, plan_counts, plan_estimate, sample_count
from deepspec.plan.checks import examine
from deepspec.plan.cost.found import Costs
from deepspec.plan.plan import Plan
from deepspec.plan.probe import GGUF_BYTES, as_probed, probe
from deepspec.plan.probe import forecast as told
from deepspec.plan.resolve import check_sources
from deepspec.store import Store
from infra.known import hardware_of, known
from infra.known import settled as known_device
from infra.settings import check_data_dir
from infra.site import Site
from infra.terminal import Piece, Styled, complain, say, show_json, show_table

if TYPE_CHECKING:
    from flows.chain import StageRun
    from flows.draft import Built


def check_input(plan: Plan, site: Site, only: str | None = None) -> Site:
    """Check what can be known before anything starts; return the site with the device that there is.

    Args:
        plan: what is asked for.
        site: where it runs.
        only: what alone is made, a stage or `reevaluate`; default: all of a run.

    Whatever the store holds may be of this run: which of it is, the run itself sees once everything is hashed.

    Raises:
        DeepSpecError: what is wrong.
    """
    site = settled(site)
    examine(known(plan, site, only=only))
    check_sources(plan)
    check_data_dir()
    site.check_keys()
    store = Store(site.root)
    store.check_writable()
    check_limits(plan, store, held=0 if store.free_bytes() is None else sum(store.sizes("").values()))
    return site


def forecast(plan: Plan, site: Site) -> None:
    """Say how long a run on this machine's processor will take, and how much disk.

    Of other places nothing is said, nor of a run that begins with a draft or a cache: it leaves the long stages out.
    """
    sizes, is_here = plan.target.sizes, site.placement.device == "cpu" and site.fan_out.runner == "threads"
    if sizes is None or not is_here or plan.draft is not None or plan.dataset.cache is not None:
        return
    rates = probe()
    cost = plan_estimate(plan, sizes, hardware=as_probed(presets.hardware("laptop"), rates))
    if cost is None or not words.fits(cost):
        return
    counts = f"{sample_count(plan)} prompts" + (f", {plan.train.steps} training steps" if plan.train.steps else "")
    kept = sizes.parameters * GGUF_BYTES if plan.target.gguf_file else sizes.weights_bytes
    say(f"{counts}; {told(cost, rates, kept, Store(site.root).free_bytes())}")
    say("what is published and fresh is not made again; more prompts and steps: --size laptop, --size hour")


def settled(site: Site, tell: Callable[[str], None] = say) -> Site:
    """Return a site whose device is one that this machine has; what `auto` has become is told."""
    site, told = known_device(site)
    if told:
        tell(told)
    return site


def plan(
    chosen: Plan,
    site: Site,
    machines: Sequence[str] = (),
    *,
    assumed: Sequence[str] | None = None,
    as_json: bool = False,
) -> None:
    """Show what a run would cost, once it is known that one could begin.

    Args:
        chosen: what is asked for.
        site: where it runs.
        machines: names of hardware to compare instead of the plan's own, where there are several.
        assumed: what a simulation is to take for given, besides; None: there is none.
        as_json: print JSON, for programs.

    Raises:
        DeepSpecError: none could; or every machine passes a limit.
    """
    site = settled(site, complain if as_json else say)
    seen, store = known(chosen, site), Store(site.root)
    told = examine(seen)
    found = counted(seen, hardware_of(site))
    if found.resolved is not None:
        told = examine(known(chosen, site, found.resolved))
    costs = {
        name: plan_estimate(chosen.but(limits=chosen.limits.but(hardware=name)), found.sizes, found.measured)
        for name in machines or [chosen.limits.hardware]
    }
    known_costs = {name: cost for name, cost in costs.items() if cost is not None}
    held = held_bytes(store, found.resolved.specs) if found.resolved else 0
    over = {name: passed_limit(chosen.limits, cost, store, held) for name, cost in known_costs.items()}
    runs = {} if assumed is None else simulated(chosen, found, list(costs), assumed)
    if as_json:
        told_runs = {"simulated": {name: each.model_dump(mode="json") for name, each in runs.items()}} if runs else {}
        show_json({**_plan_told(chosen, known_costs, over, store), **told_runs})
    else:
        counts = plan_counts(chosen, store, found.measured)
        counts += answering_lines(chosen, found.sizes, found.measured)
        _show_plan(chosen, known_costs, store, counts)
        for name, each in runs.items():
            show_table(f"simulated on {name}", simulated_rows(each))
    for line in (*told, *filter(None, [found.missing])):
        (complain if as_json else say)(line)
    _check_machines(over)


def _check_machines(over: Mapping[str, str | None]) -> None:
    """Say which of the machines pass a limit; stop where all do.

    Args:
        over: name of a machine -> what the plan needs there and may not, or None.
    """
    alike: dict[str, list[str]] = {}
    for name, needed in over.items():
        if needed:
            alike.setdefault(needed, []).append(name)
    refused = [
        f"on {_listed(names)} the plan {needed}" if len(over) > 1 else f"the plan {needed}"
        for needed, names in alike.items()
    ]
    if refused and all(over.values()):
        raise BudgetError("; ".join(refused))
    for line in refused:
        complain(Styled("over a limit:", "bold red"), f" {line}")


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _show_plan(chosen: Plan, costs: Mapping[str, Costs], store: Store, counts: Sequence[str]) -> None:
    say(Styled(f"plan: {chosen.target.name} × {chosen.train.draft.algorithm}", "bold"))
    for line in counts:
        say(line)
    if not costs:
        say("nothing is known of the target's sizes until it is read: no estimate")
    for name, cost in costs.items():
        for line in words.headline(name, cost, chosen.train.source, store.free_bytes(), chosen.cache):
            say(line)
    if len(costs) > 1:
        show_table("machines side by side", words.machine_rows(costs))
        return
    for name, cost in costs.items():
        show_table("by stage", words.stage_rows(cost, presets.hardware(name)))
        show_table("where hidden states come from", words.source_rows(cost))
        show_table("bytes by codec", words.cache_rows(cost))


def _plan_told(
    chosen: Plan, costs: Mapping[str, Costs], over: Mapping[str, str | None], store: Store
) -> dict[str, Any]:
    return {
        "target": chosen.target.name,
        "algorithm": chosen.train.draft.algorithm,
        "free_bytes": store.free_bytes(),
        "machines": {
            name: {"fits": words.fits(cost), "over_limit": over[name], **cost.model_dump(mode="json")}
            for name, cost in costs.items()
        },
    }


def summary(built: "Built", site: Site, seconds: float) -> None:
    """Show the stages with states, times and paths, and the scores of the draft."""
    store = Store(site.root)
    show_table("stages", [_spent(step) for step in built.steps])
    say(f"artifacts, in {store.root}:")
    for step in built.steps:
        say(f"    {step.ref.prefix}")
    show_table("draft", headline(store, built))
    for title, path in pictures(store, built):
        say(f"{title}:")
        say(f"    {path}")
    rest = max(0.0, seconds - sum(step.seconds for step in built.steps))
    say(f"total {seconds:.0f} s: {_longest(built)}; {rest:.0f} s beside the stages")


def _spent(step: "StageRun") -> dict[str, Piece]:
    """Return what a stage took: more of the processor than seconds is several cores, less is waiting for others."""
    times = {"seconds": f"{step.seconds:.1f}", "of the processor": f"{step.processor:.1f}"}
    return {"stage": step.stage, "state": step.state, **times}


def _longest(built: "Built") -> str:
    """Return the three stages that took longest, in words."""
    steps = sorted(built.steps, key=lambda step: -step.seconds)
    return ", ".join(f"{step.stage} {step.seconds:.0f}" for step in steps[:3])


def headline(store: Store, built: "Built") -> list[dict[str, Piece]]:
    """Return the numbers that one looks for first, from the manifests of draft, scores and speed."""
    counts = {step.stage: _counts(store, step.ref) for step in built.steps}
    scores, speed, draft = counts["evaluate"], counts["benchmark"], counts.get("train")
    rows: list[tuple[str, Piece]] = [
        (f"accepted length, temperature {float(temperature):g} (with bonus)", _number(value))
        for temperature, value in scores["accepted_length"].items()
    ]
    rows.append(("the same, untrained draft", _number(scores["accepted_length_untrained"])))
    rows.append(("lossless at temperature 0", _lossless(scores)))
    rows += [("left out of the scores", told) for told in scores.get("left_out", ())]
    for batch, value in speed["speedup"].items():
        told = f"{value:.2f}, break-even at accepted length {speed['break_even'][batch]:.2f}"
        rows.append((f"wall-clock speed-up, batch {batch}", told))
    rows += _served(speed["engine"])
    rows += _under_load(speed.get("under_load"))
    if draft is not None:
        rows.append(("training", f"{draft['steps']} steps, {draft['seconds']:.0f} s, loss {_number(draft['loss'])}"))
    return [{"what": what, "value": value} for what, value in rows]


def _lossless(scores: dict[str, Any]) -> str:
    """Return what the lossless check found; nothing is lossless of which no sample was checked."""
    if scores["lossless"] is None or not scores["lossless_samples"]:
        return "not checked"
    return f"{'yes' if scores['lossless'] else 'NO'}, {scores['lossless_samples']} samples"


def _served(engine: dict[str, Any] | None) -> list[tuple[str, Piece]]:
    """Return what the engine that served target and draft told, loudly where it is not what was measured here."""
    if engine is None:
        return [("served by an engine", "not tried; see the log of benchmark")]
    told = f"{engine['tokens per round']} tokens per round, here {engine['here']}"
    loud = Styled(f"{told}: DISAGREE: what it serves is not what was evaluated", "bold red")
    return [
        (f"served by {engine_name(engine['engine'])}", f"{told}: agree" if engine["agrees"] else loud),
        ("its speed-up with the draft", f"{engine['speed-up']} ({engine['tokens/s']} tokens/s)"),
    ]


def _under_load(found: dict[str, Any] | None) -> list[tuple[str, Piece]]:
    """Return up to which load the engine pays with the draft, and loudly what is wrong with it."""
    if found is None:
        return []
    warnings: list[tuple[str, Piece]] = [("under load", Styled(each, "bold red")) for each in found["warnings"]]
    return [("under load", found["break_even"]), *warnings]


def pictures(store: Store, built: "Built") -> list[tuple[str, str]]:
    """Return title and path of what a run drew; paths below the working folder are relative to it."""
    wanted = {
        "train": ("learning curve", "learning_curve.png"),
        "evaluate": ("acceptance by position", "acceptance.png"),
        "release": ("report", "report.html"),
    }
    found = []
    for step in built.steps:
        title, name = wanted.get(step.stage, ("", ""))
        manifest = read_manifest(store, step.ref.kind, step.ref.address)
        if manifest is not None and name in manifest.files:
            found.append((title, _near(store.uri(f"{step.ref.prefix}/{manifest.files[name].key}"))))
    return found


def _near(uri: str) -> str:
    path = Path(uri)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else uri


def _counts(store: Store, ref: ArtifactRef) -> dict[str, Any]:
    manifest = read_manifest(store, ref.kind, ref.address)
    if manifest is None:
        raise NotPublishedError(f"{store.uri(ref.prefix)} was published by this run and is gone; run again")
    return manifest.counts


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
