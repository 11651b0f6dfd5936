"""Everything that is checked before anything is spent: one table, for `plan`, `doctor`, `run` and every deployment.

A rule returns what it saw, with lines that a user should be told, or raises an InputError or a StoreError. Only
headers, configs, tokenizer and manifests are read: that takes about a second for a model of any size, and no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from deepspec.errors import DeepSpecError, rebuilt
from deepspec.plan.known import Known
from deepspec.plan.rules import draft, machine, optimizer, published, questions, sources, states, target
from deepspec.plan.rules.seen import Seen


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One row of the table."""

    rule: Callable[[Known], Seen]
    needs: Sequence[str] = ()
    """Checks without whose success this one would only say the same again."""


TARGET = ("target", "tokenizer", "chat template")

CHECKS: Mapping[str, Check] = {
    "device": Check(rule=machine.device),
    "processes": Check(rule=machine.processes),
    "trackers": Check(rule=machine.trackers),
    "sources": Check(rule=sources.local),
    "target": Check(rule=target.weights),
    "tokenizer": Check(rule=target.tokenizer, needs=("target",)),
    "chat template": Check(rule=target.chat_template, needs=("target", "tokenizer")),
    "given cache": Check(rule=published.cache, needs=("target",)),
    "given draft": Check(rule=published.draft, needs=("target", "tokenizer")),
    "layers": Check(rule=draft.layers, needs=("target", "given cache")),
    "states": Check(rule=states.engine),
    "draft": Check(rule=draft.recipe, needs=("target", "tokenizer", "given cache", "layers")),
    "optimizer": Check(rule=optimizer.optimizer, needs=("target",)),
    "held out": Check(rule=draft.held_out, needs=("given cache",)),
    "earlier draft": Check(rule=published.earlier, needs=("target", "given cache", "layers")),
    "baseline": Check(rule=published.baseline),
    "context": Check(rule=questions.context, needs=("target", "given draft")),
    "benchmarks": Check(rule=questions.benchmarks, needs=(*TARGET, "sources", "given draft", "context")),
}
"""Name -> check, in the order in which they are made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one check."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    detail: str
    told: Sequence[str] = ()
    error: DeepSpecError | None = None


def outcomes(known: Known) -> list[Outcome]:
    """Return what comes of every check."""
    found: dict[str, Outcome] = {}
    causes: dict[str, list[str]] = {}
    for name, check in CHECKS.items():
        why = list(dict.fromkeys(cause for need in check.needs for cause in causes[need]))
        found[name] = _looked(name, check, known) if not why else _skipped(name, why)
        causes[name] = [name] if found[name].state == "failed" else why
    return list(found.values())


def examine(known: Known) -> tuple[str, ...]:
    """Return what a user should be told of a plan that can be run.

    Raises:
        DeepSpecError: it cannot; of several reasons the first is the class, and all are in the message.
    """
    found = outcomes(known)
    errors = [each.error for each in found if each.error is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = "\n".join(f"  {error}" for error in errors)
        raise rebuilt(type(errors[0]).__name__, f"{len(errors)} things are in the way:\n{lines}")
    return tuple(line for each in found for line in each.told)


def _looked(name: str, check: Check, known: Known) -> Outcome:
    try:
        seen = check.rule(known)
    except DeepSpecError as error:
        return Outcome(name=name, state="failed", detail=str(error), error=error)
    return Outcome(name=name, state="ok", detail=seen.detail, told=seen.told)


def _skipped(name: str, why: Sequence[str]) -> Outcome:
    return Outcome(name=name, state="skipped", detail=f"see {', '.join(why)}")
