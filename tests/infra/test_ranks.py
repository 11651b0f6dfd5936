"""Several ranks under the guard: the one that failed first is named, with its exit code and its last lines."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.launcher.api import LaunchConfig

from deepspec.errors import EXIT_CANCELLED, ChildError
from deepspec.placement import Placement
from infra.children import ranks
from infra.children.child import Job
from infra.children.ranks import ended, first_failure
from infra.children.stage import run_job
from tests.given.heard import Heard
from tests.given.published.site import SMALL, Site, site  # noqa: F401 - a fixture
from tests.given.some import some
from tests.infra.test_launch import wait_for

SPEC = SMALL.but(steps=4000, validate_every=4000)


def rank_pid(number: int, job: Path) -> int | None:
    """Return the process of a rank of a job."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(job).encode() in words and f"\0RANK={number}\0".encode() in environment:
            return int(entry.name)
    return None


def test_the_error_is_that_of_the_rank_that_failed(site: Site, tmp_path: Path) -> None:  # noqa: F811
    placement = site.placement.model_copy(update={"processes": 2, "threads": 1})
    job = Job(
        stage="train",
        spec=SPEC.model_dump(mode="json"),
        inputs={"target_cache": site.cache.ref},
        root=site.store.root,
        placement=placement,
    )
    heard, failed = Heard(), []

    def run() -> None:
        with pytest.raises(ChildError) as caught:
            run_job(job, tmp_path / "job", heard)
        failed.append(caught.value)

    thread = Thread(target=run)
    thread.start()
    wait_for(lambda: heard.steps, seconds=120)
    os.kill(some(rank_pid(1, tmp_path / "job")), signal.SIGKILL)
    thread.join()
    assert failed[0].exit_code == 137
    assert failed[0].retryable
    told = (
        f"rank 1 of 2 on {socket.gethostname()} was killed by SIGKILL (out of memory is the usual cause); "
        "the others were ended with it"
    )
    assert told in heard.lines
    assert failed[0].last_lines.endswith(told)
    assert list((tmp_path / "job-ranks").rglob("1/stderr.log"))


def failure(code: int, timestamp: int) -> ProcessFailure:
    found = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="none")
    found.timestamp = timestamp
    return found


@pytest.mark.parametrize(
    ("codes", "first"),
    [
        ({0: (1, 7), 1: (-9, 7)}, 1),  # rank 0 lost its connection to one that was killed
        ({0: (1, 6), 1: (-9, 7)}, 1),
        ({0: (-6, 7), 1: (3, 7)}, 1),  # NCCL ended one that waited for one with an error
        ({0: (1, 7), 1: (3, 7)}, 1),
        ({0: (-15, 6), 1: (1, 7)}, 1),
        ({0: (EXIT_CANCELLED, 6), 1: (1, 7)}, 1),
        ({0: (1, 8), 1: (1, 7)}, 1),
        ({0: (1, 7), 1: (1, 7)}, 0),
    ],
)
def test_the_rank_that_is_named_is_the_one_that_the_others_waited_for(
    codes: dict[int, tuple[int, int]], first: int
) -> None:
    assert first_failure({rank: failure(*told) for rank, told in codes.items()})[0] == first


def test_how_a_rank_ended_is_told_in_one_line() -> None:
    host = socket.gethostname()
    assert ended(3, 8, 1) == f"rank 3 of 8 on {host} ended with exit code 1; the others were ended with it"
    assert ended(3, 8, -11) == f"rank 3 of 8 on {host} was killed by SIGSEGV; the others were ended with it"


def test_the_launcher_gives_ranks_that_were_asked_to_stop_no_deadline_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = list[LaunchConfig]()

    def launch(config: LaunchConfig, _entrypoint: object) -> Callable[..., None]:
        configs.append(config)
        return lambda *_: None

    monkeypatch.setattr(ranks, "elastic_launch", launch)
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    job = Job(stage="train", spec={}, inputs={}, root=str(tmp_path), placement=Placement(processes=2))
    (tmp_path / "job.json").write_text(job.model_dump_json())
    assert ranks.run(tmp_path / "job.json", tmp_path) == 0
    assert some(configs[0].shutdown_timeout) >= 3600
