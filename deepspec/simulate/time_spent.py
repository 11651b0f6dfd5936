"""How the time of a simulation was spent."""

from dataclasses import dataclass

STALL_SECONDS = 1.0
"""A trainer that waits longer for states stands still."""


@dataclass(slots=True)
class TimeSpent:
    """Sums over all ranks, and what became of steps."""

    computed: float = 0.0
    """Seconds in which ranks computed."""
    waiting: float = 0.0
    """Seconds in which ranks waited for states."""
    stalls: int = 0
    longest: float = 0.0
    """Seconds of the longest wait."""
    engines_waited: float = 0.0
    """Seconds in which a rank had nothing made since there was no room."""
    starting: float = 0.0
    """Seconds in which processes, before they trained, had engines proven and read the start of their draft."""
    steps: int = 0
    """That were taken, those done again among them."""
    again: int = 0
    """Of these, steps that were done again."""
    lost: int = 0
    """Samples that a step should have read and did not."""
    starts: int = 0
    """Of trainers."""
    gave_up: int = 0
    """Of these, those that ended since no engine answered."""

    def waited(self, seconds: float) -> None:
        """Note a wait."""
        self.waiting += seconds
        self.stalls += seconds >= STALL_SECONDS
        self.longest = max(self.longest, seconds)
