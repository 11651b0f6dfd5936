"""The cards of a machine as they were found, and whether a placement can have the device that it names."""

from pydantic import BaseModel, ConfigDict

from deepspec.errors import SpecError
from deepspec.placement import Placement

_NONE_VISIBLE = "No CUDA GPUs are available"
"""What CUDA says where a driver works and shows no card."""


class Card(BaseModel):
    """One GPU that torch may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    memory: int
    """Bytes."""


class Machine(BaseModel):
    """What torch found on a machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    torch: str
    """Version and build, such as 2.13.0+cu128."""
    built_for: str | None
    """CUDA (or ROCm) version that torch was built for; None: a build for CPUs."""
    driver: str | None
    """Version of the NVIDIA driver; None: there is none."""
    cards: tuple[Card, ...] = ()
    failure: str = ""
    """What CUDA said when it was asked for its cards."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES, where it is set."""

    def told(self) -> str:
        """Return cards, driver and build in words."""
        names = ", ".join(f"{card.name} ({card.memory / 1e9:.0f} GB)" for card in self.cards) or "no card"
        return f"{names}; {f'driver {self.driver}' if self.driver else 'no NVIDIA driver'}; torch {self.torch}"

    def why_none(self) -> str:
        """Return why torch sees no card, and what to do."""
        if self.built_for is None:
            beside = f", though this machine has the NVIDIA driver {self.driver}" if self.driver else ""
            return f"torch {self.torch} is a build for CPUs{beside}; install one for CUDA (README, Install a torch)"
        if self.visible is not None and self.driver and self.failure in ("", _NONE_VISIBLE):
            return f"CUDA_VISIBLE_DEVICES={self.visible!r} leaves none to torch; unset it, or name a card"
        if self.driver is None:
            return "this machine has no NVIDIA driver; give --device cpu"
        reason = f": {self.failure}" if self.failure else ""
        return (
            f"torch {self.torch} cannot use the driver {self.driver}{reason}; a driver older than CUDA "
            f"{self.built_for} is the usual cause: update it, or install a torch for an older CUDA"
        )


def settled(placement: Placement, machine: Machine) -> tuple[Placement, str]:
    """Return a placement whose device `auto` has become cuda or cpu, and which one in words."""
    device = "cuda" if machine.cards else "cpu"
    told = machine.told() if machine.cards else machine.why_none()
    return placement.model_copy(update={"device": device}), f"--device auto is {device}: {told}"


def check_device(placement: Placement, machine: Machine) -> str:
    """Return what a placement will compute on, in words.

    Raises:
        SpecError: there is no such card, or not one for each process.
    """
    device, cards = placement.device, len(machine.cards)
    if not cards:
        raise SpecError(f"--device {device}: torch sees no card here: {machine.why_none()}")
    _, _, number = device.partition(":")
    if number and int(number) >= cards:
        raise SpecError(f"--device {device}: this machine has {cards} cards, cuda:0 to cuda:{cards - 1}")
    if placement.processes > 1 and device != "cuda":
        raise SpecError(
            f"--device {device} is for one process and --processes is {placement.processes}; give --device cuda, "
            "where each process takes a card"
        )
    if placement.processes > cards:
        raise SpecError(
            f"--processes is {placement.processes} and this machine has {cards} cards ({machine.told()}); each "
            "process takes one: start fewer"
        )
    return machine.told()
