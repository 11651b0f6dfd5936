"""Every error that DeepSpec raises on purpose.

    DeepSpecError
    ├── InputError              the user can mend it: exit code 2, one line, no traceback
    │   ├── SpecError           a plan, preset or override that makes no sense (also a ValueError)
    │   │   └── UnknownNameError
    │   ├── SourceError         prompts, answers or benchmarks that cannot be read
    │   │   ├── RowError        one row of them; its `reason` is what dropped rows are counted by
    │   │   └── BadRowsError    more such rows than the plan allows
    │   ├── TargetError         a target model that cannot be used
    │   ├── CheckpointError     a draft checkpoint that cannot be loaded
    │   ├── EngineError         an engine that is not there, or not the one the plan names
    │   └── BudgetError         the plan does not fit the disk, the money or the hours given
    ├── StoreError              the store refused, or cannot be reached
    │   ├── FullDiskError       no room is left where something is written
    │   ├── RefusedError        the store knows who asks, or does not, and will not: asking again is of no use
    │   ├── NotPublishedError   an artifact that was never committed
    │   └── CorruptArtifactError  bytes that do not match their manifest
    ├── CaptureError            the target gave hidden states that cannot be trained on
    ├── AnswersError            regeneration that could not account for every row
    ├── TrainingError           training that cannot go on (non-finite losses, bad data)
    ├── ParityError             two forms of one model that should agree and do not
    ├── ChildError              a child process that failed
    ├── ServerError             Prefect's server went away in the middle of a run
    ├── SimulationError         a simulation in which nothing can happen any more
    └── CancelledError          a stage asked to stop: what it had is saved, resume goes on

A message says what, where, what was wanted and what to do; what helps with most errors of a class is its `remedy` (the
docs list them). `retryable` errors can pass by themselves; only those are retried by an orchestrator.
"""

from collections.abc import Iterable
from pathlib import Path

EXIT_INPUT = 2
"""Exit code of a command that failed because of its input."""

EXIT_CANCELLED = 143
"""Exit code of a child process that was asked to stop and saved its work (128 + SIGTERM)."""


SIGNALLED = 128
"""Exit codes above this say that a signal ended a process: its number is the rest."""


class DeepSpecError(Exception):
    """Root of the tree."""

    remedy = "Do what the message says; `--debug` shows where in the code it was raised."
    """What helps with most errors of a class, in one line: its row of the reference."""
    retryable = False
    """Whether the same call may succeed later with nothing changed."""
    status = 1
    """Exit code of a command that ends with it."""


class InputError(DeepSpecError):
    """Something the user gave, and can mend."""

    remedy = "Correct what the message names and give the command again; nothing was spent."
    status = EXIT_INPUT


class SpecError(InputError, ValueError):
    """A plan, preset or override that makes no sense."""

    remedy = "`deepspec fields` lists every field with its default, `deepspec COMMAND --help` every option."


class UnknownNameError(SpecError):
    """A name that is not in its table."""

    remedy = "Take one of the names that the message lists."

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        """Say which name of which kind is unknown, and which are known."""
        super().__init__(f"unknown {what} {name!r}; known: {', '.join(sorted(known))}")


class SourceError(InputError):
    """Prompts, answers or benchmarks that cannot be read."""

    remedy = "Open the file at the line that the message names; `docs/formats/prompts.md` says what a row looks like."

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        """Put the file and the 1-based line in front of the message."""
        where = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(f"{where}{message}")
        self.path = path
        self.line = line


class RowError(SourceError):
    """One row that cannot be used."""

    remedy = "Mend or delete that row; with `bad_rows=drop`, the default, such rows are counted and left out."

    def __init__(self, reason: str, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        """Keep the reason, one word of a short list, beside the message."""
        super().__init__(message, path, line)
        self.reason = reason


class BadRowsError(SourceError):
    """More rows that cannot be used than the plan allows; the message is the table of reasons."""

    remedy = "Mend the rows of the most frequent reason in the table first; `prepare.bad_share` is how many may be bad."


class TargetError(InputError):
    """A target model that cannot be used."""

    remedy = (
        "`deepspec doctor --target FOLDER` says what is missing; `docs/targets.md` which types of models can be used."
    )


class CheckpointError(InputError):
    """A draft checkpoint that cannot be loaded."""

    remedy = "`deepspec inspect FOLDER` says what the checkpoint is, with `--target` whether it belongs to that target."


class EngineError(InputError):
    """An engine that is not there, refuses the model, or dies."""

    remedy = "Look at the end of the log that the message names, or ask the endpoint by hand: `curl URL/models`."


class BudgetError(InputError):
    """The plan does not fit the disk, the money or the hours given."""

    remedy = "Raise the limit that the message names, or make less; what is done stays, and the same command goes on."


class StoreError(DeepSpecError):
    """The store refused, or cannot be reached."""

    remedy = "`deepspec doctor` tries each operation of the store; free some space (`deepspec gc`), then run again."
    retryable = True
    status = EXIT_INPUT


class FullDiskError(StoreError):
    """No room is left where something is written; trying again makes none."""

    remedy = "Free some space on the disk that is named (`deepspec gc` for a store), then run the same command again."
    retryable = False


class RefusedError(StoreError):
    """The store will not do what is asked, however often: wrong credentials, no permission, no such bucket."""

    remedy = (
        "Mend what the message names: credentials, bucket, permission (`deepspec doctor` says which operation takes "
        "which; `infra/s3/policy.json` has all)."
    )
    retryable = False


class NotPublishedError(StoreError):
    """An artifact that was never committed."""

    remedy = "Run the stage that makes it: `deepspec status` lists what is there, `deepspec` alone what comes next."
    retryable = False


class CorruptArtifactError(StoreError):
    """Bytes in the store that do not match their manifest."""

    remedy = "Delete it with `deepspec gc --artifact KIND/ADDRESS --yes` and run again: it is made anew."
    retryable = False


class CaptureError(DeepSpecError):
    """The target gave hidden states that cannot be trained on."""

    remedy = (
        "Capture in another precision (`cache.dtype=float32`), and run `deepspec cache verify` on what is published."
    )


class AnswersError(DeepSpecError):
    """Regeneration that could not account for every row."""

    remedy = "Run again: rows that are accounted for are kept, the others are asked anew."
    retryable = True


class TrainingError(DeepSpecError):
    """Training that cannot go on."""

    remedy = (
        "Look at the end of `metrics.jsonl`; lower `train.learning_rate`, or check the cache with `deepspec "
        "cache verify`."
    )


class ParityError(DeepSpecError):
    """Two forms of one model that should agree and do not."""

    remedy = "`deepspec parity DRAFT` says which forms part and from which token; serve none of them until they agree."


class ChildError(DeepSpecError):
    """A child process that failed; one that a signal ended (out of memory, say) may live the next time."""

    remedy = (
        "Its log ends with the cause. Exit code 137 is a kill, most often for want of memory: make "
        "`--micro-batch` smaller."
    )

    def __init__(self, command: str, exit_code: int, last_lines: str) -> None:
        """Say which command ended with which code, and what it printed last."""
        super().__init__(f"{command} ended with exit code {exit_code}; its last lines:\n{last_lines}")
        self.exit_code = exit_code
        self.retryable = exit_code > SIGNALLED and exit_code != EXIT_CANCELLED
        self.last_lines = last_lines


class ServerError(DeepSpecError):
    """Prefect's server went away in the middle of a run."""

    remedy = "Start the server again, then type the same command: what is published, and what was saved, stays."
    retryable = True


class SimulationError(DeepSpecError):
    """A simulation whose parts all wait for what will not come: what it runs would hang in a real run, too."""

    remedy = "Report it with the command: two parts of the code wait for each other."


class CancelledError(DeepSpecError):
    """A stage that was asked to stop; what it had done is saved, and the same command goes on from there."""

    remedy = "Nothing: what was done is saved, and the same command goes on from there."
    status = EXIT_CANCELLED


def rebuilt(name: str, message: str) -> DeepSpecError:
    """Return an error of the tree from its class name and message, as they come from another process."""
    kind = _by_name(DeepSpecError).get(name, DeepSpecError)
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


def _by_name(root: type[DeepSpecError]) -> dict[str, type[DeepSpecError]]:
    names = {root.__name__: root}
    for child in root.__subclasses__():
        names.update(_by_name(child))
    return names
