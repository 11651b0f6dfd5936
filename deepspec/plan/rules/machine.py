"""The machine: its cards, the processes that share a step, and the packages that trackers need."""

import importlib.util
from collections.abc import Mapping

from deepspec.errors import SpecError, UnknownNameError
from deepspec.plan.known import Known
from deepspec.plan.machine import check_device
from deepspec.plan.rules.seen import Seen

TRACKERS: Mapping[str, tuple[str, ...]] = {
    "aim": ("aim",),
    "clearml": ("clearml",),
    "comet_ml": ("comet_ml",),
    "dvclive": ("dvclive",),
    "mlflow": ("mlflow",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Tracker, as accelerate calls it -> packages of which it needs one. Accelerate itself loads torch."""


def device(known: Known) -> Seen:
    """Hold the device against the cards that torch sees."""
    if known.placement.device == "cpu":
        return Seen("cpu")
    if known.machine is None and known.placement.device == "auto":
        raise SpecError("--device auto is what this machine has, and the stages run on others; name cuda or cpu")
    if known.machine is None:
        return Seen(f"{known.placement.device}, on the machines that the stages run on")
    return Seen(check_device(known.placement, known.machine()))


def processes(known: Known) -> Seen:
    """Hold the training processes against the samples of a step, which they share."""
    count, batch = known.placement.processes * known.nodes, known.plan.train.global_batch
    if known.plan.draft is None and count > batch:
        raise SpecError(
            f"{count} processes share a step of train.global_batch={batch} samples; start fewer, or raise it"
        )
    return Seen(f"{count}")


def trackers(known: Known) -> Seen:
    """Hold the names of trackers against those that there are, and their packages against those installed."""
    for name in known.placement.trackers:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, TRACKERS)
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            package = TRACKERS[name][0]
            raise SpecError(f"--tracker {name}: its package is not installed; run: pip install {package}")
    return Seen(", ".join(known.placement.trackers) or "none")
