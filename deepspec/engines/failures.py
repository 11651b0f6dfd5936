"""What it means that an engine gives no answer."""

from typing import Any, Literal

from deepspec.errors import DeepSpecError

Fault = Literal["row", "odd", "engine", "busy", "late"]
"""What a failure says: this request cannot be answered; what came back is no answer (the endpoint is sick, or it gives
no other one to this request); the endpoint is sick; it has too much to do (and said so); or it did not answer in time
(either of the two)."""

LONGEST_REASON = 300
"""Characters that are kept of what an engine says."""


class AskError(DeepSpecError):
    """A question without an answer. Stays inside the room that asks: it becomes a retry, or what is told of a row.

    Args:
        message: why; too long ones are cut, and what no file can hold is replaced.
        fault: whose fault it is.
        reason: one word by which a row is counted that keeps failing so; empty where the next run may see it answered.
        retry_after: seconds that the endpoint asked to be left alone.
    """

    def __init__(self, message: str, fault: Fault, *, reason: str = "", retry_after: float | None = None) -> None:
        """Say why, and whose fault it is."""
        super().__init__(message[:LONGEST_REASON].encode(errors="replace").decode())
        self.fault = fault
        self.reason = reason
        self.retry_after = retry_after

    @property
    def can_pass(self) -> bool:
        """Return whether the same question may be answered later, or elsewhere."""
        return self.fault != "row"


class UnknownFinishError(AskError):
    """An answer that ended with a reason that is in no table: it may be a piece of one."""

    def __init__(self, told: Any) -> None:
        """Name the reason."""
        self.told = repr(told)[:40]
        super().__init__(f"the answer was ended by {self.told}", "engine")
