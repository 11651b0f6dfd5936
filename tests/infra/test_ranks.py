"""Several ranks under the guard: the one that failed first is named, with its exit code and its last lines."""

import os
import signal
from pathlib import Path
from threading import Thread

import pytest

from deepspec.errors import ChildError
from infra.children.child import Job
from infra.children.stage import run_job
from tests.heard import Heard
from tests.infra.test_launch import wait_for
from tests.train.conftest import SMALL, Site, site  # noqa: F401 - a fixture

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


def test_the_error_is_that_of_the_rank_that_failed(site: Site, tmp_path):  # noqa: F811
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
    os.kill(rank_pid(1, tmp_path / "job"), signal.SIGKILL)
    thread.join()
    assert failed[0].exit_code == 137
    assert failed[0].retryable
    assert "rank 1 ended with exit code -9" in failed[0].last_lines
    assert list((tmp_path / "job-ranks").rglob("1/stderr.log"))
