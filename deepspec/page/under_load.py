"""What card and report say of an engine under load."""

from collections.abc import Mapping

from deepspec.formats.serve_options import ServeOptions
from deepspec.formats.served import UnderLoad
from deepspec.formats.speed import Speed
from deepspec.page.page import Section, table

PROPOSED = (
    "Tokens to propose at each load, by what a round costs there and how often each position is accepted; one number "
    "for all of them: {best}."
)
SCHEDULER = (
    "By replay of the evaluation's rounds, an engine that verifies every proposal whole, instead of as much of each as "
    "the prefix scheduler admits, loses {lost} of its tokens per second."
)
TIMES = "Times are p50 / p95 / p99, in milliseconds, from the moment at which a request was to be sent."


def card_entries(speed: Speed) -> Mapping[str, str] | None:
    """Return what the card says, by place in its template; None where nothing was measured."""
    found = speed.under_load
    if found is None:
        return None
    return {
        "text": f"{_measured(found)} {found.break_even_text()} {TIMES}",
        "levels": table(found.rows()),
        "proposals": table(found.proposal_rows()),
        "proposed": _proposed(found),
        "tried": table(found.tried_rows()),
        "changes": table(found.change_rows()),
        "scheduler": _scheduler_text(speed),
    }


def warned(speed: Speed) -> list[str]:
    """Return what must be told first."""
    found = speed.under_load
    if found is None:
        return []
    slower = [f"{each.load:g}" for each in found.changes if each.verdict == "slower"]
    worse = [f"Slower than the release before at {', '.join(slower)} requests at once."] if slower else []
    return [*found.warnings, *worse]


def sections(speed: Speed, figures: Mapping[str, bytes]) -> list[Section]:
    """Return the parts of the report."""
    found = speed.under_load
    if found is None:
        return []
    texts = [_measured(found), found.break_even_text(), TIMES]
    parts = [Section(title="Served under load", texts=texts, rows=found.rows(), figures=figures)]
    if found.check is not None:
        text = "Prompts that were decoded here, asked one after another before the loads."
        parts.append(Section(title="What the engine accepts", texts=[text], rows=[found.check.row()]))
    if found.proposals:
        parts.append(Section(title="What to propose", texts=[_proposed(found)], rows=found.proposal_rows()))
    if found.tried:
        parts.append(Section(title="Other settings of the engine", rows=found.tried_rows()))
    if found.changes:
        parts.append(Section(title="Under load, against the release before", rows=found.change_rows()))
    if text := _scheduler_text(speed):
        parts[0] = Section(title=parts[0].title, texts=[*texts, text], rows=parts[0].rows, figures=figures)
    return parts


def _measured(found: UnderLoad) -> str:
    """Return how it was measured, in a sentence or two."""
    where = f"on {found.hardware}" if found.started else f"asked from {found.hardware}"
    alone = "" if found.plain_engine is None else f", and without the draft ({found.plain_engine})"
    return f"{found.engine}, {where}{alone}. {_asked(found.options)}"


def _scheduler_text(speed: Speed) -> str:
    """Return what is lost without the prefix scheduler; empty where no rounds were replayed."""
    lost = [
        f"{1 - each.fixed_tokens_per_second / each.scheduled_tokens_per_second:.0%} at {each.requests}"
        for each in speed.loads
    ]
    return SCHEDULER.format(lost=", ".join(lost)) if lost else ""


def _asked(options: ServeOptions) -> str:
    ends = (
        f"all of {options.max_tokens} tokens" if options.ends == "fixed" else f"of at most {options.max_tokens} tokens"
    )
    prompts = "Prompts of a file" if options.prompts else "Prompts of the benchmarks"
    cut = "" if not options.contexts else f", filled to {', '.join(map(str, options.contexts))} tokens"
    return f"{prompts}{cut}; answers {ends}, at temperature 0; no prefix is kept between requests unless it is said."


def _proposed(found: UnderLoad) -> str:
    best = found.best
    if best is None:
        return ""
    return PROPOSED.format(best=f"{best.tokens}" if best.tokens else "none, serve without the draft")
