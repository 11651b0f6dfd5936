"""What is known of a target cache once its answers exist: counts instead of guesses. Loads no model library."""

from collections.abc import Mapping

from pydantic import Field

from deepspec.ranges import Range
from deepspec.specs import Spec


class AnswerCounts(Spec):
    """Counts of the answers, as the capture will read them."""

    rows: int = Field(gt=0)
    """Answers that were counted: all of them, or an even sample."""
    samples: int = Field(gt=0)
    tokens: Range
    """Exact where all answers were counted, else the 95 % interval."""
    supervised: Range
    last_rows: Range
    ratios: Mapping[str, Range] = Field(default_factory=dict)
    """Codec -> bytes of states against raw bf16, where some were captured for that."""
