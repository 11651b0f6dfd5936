"""The cards of this machine, looked at by a short child that loads torch: python -m infra.children.devices

The parent never imports torch, and asks once: what it is told holds for as long as it runs.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from deepspec.errors import ChildError
from deepspec.plan.machine import Card, Machine
from infra.settings import environment, torch_env, visible_cards

DRIVER = Path("/proc/driver/nvidia/version")
PATIENCE_SECONDS = 180.0
"""How long torch may take to load and to look at the cards of a busy machine."""


@cache
def machine() -> Machine:
    """Return what torch finds on this machine.

    Raises:
        ChildError: it could not be loaded, or did not answer.
    """
    command = [sys.executable, "-m", "infra.children.devices"]
    env = environment(torch_env(None))
    try:
        done = subprocess.run(
            command,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(" ".join(command), -1, f"no answer in {PATIENCE_SECONDS:.0f} s") from error
    if done.returncode != 0 or not done.stdout.strip():
        raise ChildError(" ".join(command), done.returncode, done.stderr[-2000:])
    return Machine.model_validate_json(done.stdout.strip().splitlines()[-1])


def driver_version() -> str | None:
    """Return the version of this machine's NVIDIA driver; None: there is none. Loads nothing."""
    try:
        words = DRIVER.read_text().split()
    except OSError:
        return _asked_driver()
    return next((word for word in words if word[:1].isdigit() and "." in word), "of an unknown version")


def _asked_driver() -> str | None:
    """Return what nvidia-smi says: in a container the driver's file may not be there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def _look() -> Machine:
    """Return what torch finds, in a process that may load it."""
    import torch  # only in the child

    build: Any = torch.version
    failure, cards = "", []
    try:
        torch.cuda.init()
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            cards.append(Card(name=str(found.name), memory=int(found.total_memory)))
    except (RuntimeError, AssertionError) as error:
        failure, cards = (str(error).strip().splitlines() or [type(error).__name__])[0], []
    return Machine(
        torch=torch.__version__,
        built_for=build.cuda or build.hip,
        driver=driver_version(),
        cards=tuple(cards),
        failure=failure,
        visible=visible_cards(),
    )


if __name__ == "__main__":
    sys.stdout.write(f"{_look().model_dump_json()}\n")
