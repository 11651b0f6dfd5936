"""Two launchers that meet at a rendezvous on loopback, as on two machines: one is killed and comes back."""

import signal
import socket
import time

import pytest

from deepspec.artifacts import ArtifactRef
from tests.given.published.launched import Launched
from tests.given.published.site import SMALL, Site
from tests.train.test_ranks import assert_close

SPEC = SMALL.but(steps=20, global_batch=6, checkpoint_every=3)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launcher(site: Site, name: str, number: int, port: int) -> Launched:
    meeting = [
        "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-id={name}",
        f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1", f"--rdzv-conf=is_host={int(number == 0)}",
    ]  # fmt: skip
    return Launched(site, name, SPEC, rest=0.05, meeting=meeting)


def wait_for_step(step: int, *launched: Launched) -> None:
    """Return when the first rank, wherever it is, has said a step."""
    while not any(f"STEP {step}\n" in each.log() for each in launched):
        time.sleep(0.05)


def published_by(*launched: Launched) -> ArtifactRef:
    """Return what the one of them that had the first rank published."""
    told = [line for each in launched for line in each.log().splitlines() if line.startswith("PUBLISHED ")]
    (line,) = told
    return ArtifactRef.model_validate_json(line.removeprefix("PUBLISHED "))


@pytest.mark.soak
def test_two_launchers_train_the_draft_of_one_process(site: Site) -> None:
    alone, _ = site.train(SPEC, "alone-of-launchers")
    port = free_port()
    first, second = (launcher(site, "met", number, port) for number in (0, 1))
    codes = second.end(), first.end()
    assert codes == (0, 0), first.log() + second.log()
    assert_close(site, published_by(first, second), alone)
    assert not first.survivors()
    assert not second.survivors()


@pytest.mark.soak
def test_a_launcher_that_is_killed_and_comes_back_is_waited_for(site: Site) -> None:
    alone, _ = site.train(SPEC, "alone-of-struck")
    port = free_port()
    first, second = (launcher(site, "struck-node", number, port) for number in (0, 1))
    wait_for_step(7, first, second)
    second.strike("launcher", signal.SIGKILL)
    second.end()
    assert not second.survivors()
    back = launcher(site, "struck-node", 1, port)
    assert back.end() == 0, back.log()
    assert first.end() == 0, first.log()
    assert_close(site, published_by(first, back), alone)
    assert "going on after step" in first.log() + back.log()
    assert not first.survivors()
    assert not back.survivors()
