"""Algorithms by the draft that they train, so that the type of a draft is known where its algorithm is."""

from typing import Literal

from deepspec.algorithms import ALGORITHMS
from deepspec.algorithms.blocks import BlockAlgorithm
from deepspec.formats.recipe import AlgorithmName
from deepspec.models.draft import BlockDraft, EagleDraft

OfBlocks = Literal["dspark", "dflash", "dflash2", "xpress"]
"""`BlockDraft`."""
OfSteps = Literal["eagle3", "peagle", "mtp"]
"""`EagleDraft`."""


def of_blocks(name: AlgorithmName) -> BlockAlgorithm:
    """Return an algorithm that trains blocks, by its name."""
    algorithm = ALGORITHMS[name]
    assert isinstance(algorithm, BlockAlgorithm)
    return algorithm


def block_draft(model: BlockDraft | EagleDraft) -> BlockDraft:
    """Return a draft that is one of blocks."""
    assert isinstance(model, BlockDraft)
    return model


def step_draft(model: BlockDraft | EagleDraft) -> EagleDraft:
    """Return a draft that is one of steps."""
    assert isinstance(model, EagleDraft)
    return model
