"""A Ray cluster of two nodes on this machine: shards as its tasks, training as its ranks, and a node that is killed."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepspec.stages import STAGES
from deepspec.store import Store
from flows.chain import Chain
from infra.children.stage import run_stage
from infra.site import FanOut, Site
from tasks.shards import make_shards
from tests.given.heard import Heard
from tests.given.published.caches import build, placement_for, publish_answers, rows, spec_for
from tests.given.published.site import SMALL, make_site
from tests.given.server.session import api  # noqa: F401 - a fixture
from tests.given.targets.tiny import write_target

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed (pip install -e '.[ray]')")
pytest.importorskip("prefect_ray", reason="the extra `ray` is not installed (pip install -e '.[ray]')")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    found.add_node(num_cpus=1)
    yield found
    ray.shutdown()
    found.shutdown()


def test_shards_on_a_cluster_that_loses_a_node_give_the_bytes_of_one_process(
    api: str,  # noqa: F811
    cluster: Any,
    tmp_path: Path,
) -> None:
    target = write_target(tmp_path / "target")
    store, scratch, spec = Store(tmp_path / "store"), tmp_path / "scratch", spec_for(target)
    answers = publish_answers(store, scratch, [rows(5, seed=seed) for seed in range(4)])
    fan_out = FanOut(workers=2, runner="ray", address=cluster.address)
    site = Site(root=store.root, placement=placement_for(target, scratch), fan_out=fan_out)

    @flow(name="cache-on-ray")
    def cache() -> str:
        make_shards("cache", spec, {"answers": answers.ref}, site)
        return Chain({"cache": spec}, site).run("cache", answers.ref).content

    def lose_a_node() -> None:
        while not [key for key in store.list("target_cache") if "/parts/" in key]:
            time.sleep(0.1)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    alone = build(spec, target, answers, Store(tmp_path / "other"), tmp_path / "elsewhere")
    loss = Thread(target=lose_a_node)
    loss.start()
    with temporary_settings({PREFECT_API_URL: api}):
        assert cache() == alone.content
    loss.join()


def test_two_ranks_on_a_cluster_train_one_draft(cluster: Any, tmp_path: Path) -> None:
    made = make_site(tmp_path)
    placement = made.placement.model_copy(update={"processes": 2})
    site = Site(
        root=made.store.root, placement=placement, fan_out=FanOut(workers=2, runner="ray", address=cluster.address)
    )
    heard = Heard()
    ref = run_stage(site.work(STAGES["train"], SMALL, {"target_cache": made.cache.ref}, heard), site)
    assert made.open(ref).counts["steps"] == SMALL.steps
    assert heard.steps, "events come through Ray's log"
