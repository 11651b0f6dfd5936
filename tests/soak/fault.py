"""What a test says of a folder of faults: how it is run, and what its commands and artifacts have to say."""

from collections.abc import Sequence
from dataclasses import dataclass

NEVER = (r"Traceback \(most recent", r"ExceptionGroup", r"^[\w.]*(Error|Exception): ")
"""No user is ever shown a traceback, whole or its last lines."""

STAGES = ("prepare", "regenerate", "cache", "train", "export")
AGREES = "^train the cache agrees with its target: 2 samples computed again, off by "


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What one command has to say, and how it ends."""

    command: str
    """Its words before the options, or the first of them; empty: `run.sh` does not say which it is."""
    code: int
    says: Sequence[str]
    never: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One way to run a folder, and what has to come of it."""

    commands: Sequence[Told]
    shown: Sequence[str] = ()
    """What the output has to hold anywhere: rows of artifacts, supervised tokens between « and »."""
    never: Sequence[str] = ()
    also: Sequence[str] = ()
    """Settings that every command of a run gets besides: without them `run.sh` does not reach what it is about."""
    needs: Sequence[str] = ()
    later: Sequence[str] = ()
    """Errors that may end commands after those of `commands`, which the moment decides; none: there are no others."""


def done(command: str, *says: str, never: Sequence[str] = ()) -> Told:
    """Return a command that does its work."""
    return Told(command=command, code=0, says=says, never=never)


def ends(command: str, *says: str, code: int = 2, never: Sequence[str] = ()) -> Told:
    """Return a command that ends with an error of one line."""
    return Told(command=command, code=code, says=("^error: ", *says), never=never)


def dropped(read: int, kept: int, reasons: str) -> str:
    """Return the line of what became of rows."""
    return rf"{read} rows (of answers )?read, {kept} kept, dropped: {reasons}$"


def built(answers: str = "", *, rows: str = "", cache: str = r"^cache: Completed, ") -> tuple[Told, ...]:
    """Return prepare, regenerate and cache, all of which do their work."""
    return (done("prepare", rows), done("regenerate", answers), done("cache", cache))


def trained(**says: str) -> tuple[Told, ...]:
    """Return prepare to export, all of which do their work."""
    return tuple(done(stage, f"^{stage}: Completed, ", says.get(stage, "")) for stage in STAGES)
