"""Training for people: the section of a report that says how a draft got better."""

from collections.abc import Mapping
from typing import Any

from deepspec.page.page import Section


def sections(trained: Mapping[str, Any], figures: Mapping[str, bytes]) -> list[Section]:
    """Return how accepted length grew in training; nothing of a draft that was trained elsewhere.

    Args:
        trained: what training counted.
        figures: name -> PNG, of which `learning_curve` is shown.
    """
    if "learning_curve" not in figures:
        return []
    texts = [
        "Losses, and the accepted length over held-out answers that a walk over their rounds gives, at every look."
    ]
    look = trained.get("held_out") or {}
    if "accepted_length" in look:
        low, high = look["accepted_length_low"], look["accepted_length_high"]
        length = f"{look['accepted_length']:.3f} ({low:.3f} to {high:.3f})"
        texts.append(
            f"Those of the draft, of step {look['step']}: {length}. Other prompts than those of the benchmarks."
        )
    figures = {"learning curve": figures["learning_curve"]}
    return [Section(title="While it was trained", texts=texts, figures=figures)]
