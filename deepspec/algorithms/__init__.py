"""The draft algorithms in training: what is supervised, and the loss."""

from collections.abc import Mapping

from deepspec.algorithms.base import Algorithm, LossResult
from deepspec.algorithms.blocks import BlockAlgorithm
from deepspec.algorithms.eagle3 import Eagle3
from deepspec.algorithms.mtp import Mtp
from deepspec.algorithms.peagle import PEagle
from deepspec.algorithms.xpress import XPress

__all__ = ["ALGORITHMS", "Algorithm", "LossResult"]

ALGORITHMS: Mapping[str, Algorithm] = {
    "dspark": BlockAlgorithm(cross_entropy=0.1, total_variation=0.9),
    "dflash": BlockAlgorithm(cross_entropy=1.0, total_variation=0.0),
    "dflash2": BlockAlgorithm(cross_entropy=1.0, total_variation=0.0),
    "xpress": XPress(cross_entropy=0.1, total_variation=0.45),
    "eagle3": Eagle3(),
    "peagle": PEagle(),
    "mtp": Mtp(),
}
"""Name -> algorithm, with the factors of its loss."""
