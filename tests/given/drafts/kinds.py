"""Algorithms by the draft that they train, so that the type of a draft is known where its algorithm is."""

from typing import Literal

OfBlocks = Literal["dspark", "dflash", "dflash2", "xpress"]
"""`BlockDraft`."""
OfSteps = Literal["eagle3", "peagle", "mtp"]
"""`EagleDraft`."""
