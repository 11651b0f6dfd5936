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
    │   ├── NotPublishedError   an artifact that was never committed
    │   └── CorruptArtifactError  bytes that do not match their manifest
    ├── CaptureError            the target gave hidden states that cannot be trained on
    ├── AnswersError            regeneration that could not account for every row
    ├── TrainingError           training that cannot go on (non-finite losses, bad data)
    ├── ParityError             two forms of one model that should agree and do not
    ├── ChildError              a child process that failed
    └── CancelledError          a stage asked to stop: what it had is saved, resume goes on

A message says what, where, what was wanted and what to do. `retryable` errors can pass by themselves;
only those are retried by an orchestrator.
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

    retryable = False
    """Whether the same call may succeed later with nothing changed."""
    status = 1
    """Exit code of a command that ends with it."""


class InputError(DeepSpecError):
    """Something the user gave, and can mend."""

    status = EXIT_INPUT


class SpecError(InputError, ValueError):
    """A plan, preset or override that makes no sense."""


class UnknownNameError(SpecError):
    """A name that is not in its table."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        """Say which name of which kind is unknown, and which are known."""
        super().__init__(f"unknown {what} {name!r}; known: {', '.join(sorted(known))}")


class SourceError(InputError):
    """Prompts, answers or benchmarks that cannot be read."""

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        """Put the file and the 1-based line in front of the message."""
        where = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(f"{where}{message}")
        self.path = path
        self.line = line


class RowError(SourceError):
    """One row that cannot be used."""

    def __init__(self, reason: str, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        """Keep the reason, one word of a short list, beside the message."""
        super().__init__(message, path, line)
        self.reason = reason


class BadRowsError(SourceError):
    """More rows that cannot be used than the plan allows; the message is the table of reasons."""


class TargetError(InputError):
    """A target model that cannot be used."""


class CheckpointError(InputError):
    """A draft checkpoint that cannot be loaded."""


class EngineError(InputError):
    """An engine that is not there, refuses the model, or dies."""


class BudgetError(InputError):
    """The plan does not fit the disk, the money or the hours given."""


class StoreError(DeepSpecError):
    """The store refused, or cannot be reached."""

    retryable = True
    status = EXIT_INPUT


class FullDiskError(StoreError):
    """No room is left where something is written; trying again makes none."""

    retryable = False


class NotPublishedError(StoreError):
    """An artifact that was never committed."""

    retryable = False


class CorruptArtifactError(StoreError):
    """Bytes in the store that do not match their manifest."""

    retryable = False


class CaptureError(DeepSpecError):
    """The target gave hidden states that cannot be trained on."""


class AnswersError(DeepSpecError):
    """Regeneration that could not account for every row."""

    retryable = True


class TrainingError(DeepSpecError):
    """Training that cannot go on."""


class ParityError(DeepSpecError):
    """Two forms of one model that should agree and do not."""


class ChildError(DeepSpecError):
    """A child process that failed; one that a signal ended (out of memory, say) may live the next time."""

    def __init__(self, command: str, exit_code: int, last_lines: str) -> None:
        """Say which command ended with which code, and what it printed last."""
        super().__init__(f"{command} ended with exit code {exit_code}; its last lines:\n{last_lines}")
        self.exit_code = exit_code
        self.retryable = exit_code > SIGNALLED and exit_code != EXIT_CANCELLED
        self.last_lines = last_lines


class CancelledError(DeepSpecError):
    """A stage that was asked to stop; what it had done is saved, and the same command goes on from there."""

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
