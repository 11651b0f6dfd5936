"""Shards of a stage in children of their own: counted, made in any order, and then found by the stage itself."""

from pathlib import Path

from deepspec.stages import STAGES
from deepspec.store import Store
from infra.children.shards import count_shards, run_shard
from infra.children.stage import run_stage
from infra.site import Site
from tests.given.heard import Heard
from tests.given.published.caches import build, placement_for, publish_answers, rows, spec_for
from tests.given.targets.tiny import write_target


def test_a_stage_finds_the_shards_that_others_made(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target")
    store, scratch, spec = Store(tmp_path / "store"), tmp_path / "scratch", spec_for(target)
    answers = publish_answers(store, scratch, [rows(6), rows(7, seed=1)])
    site = Site(root=store.root, placement=placement_for(target, scratch))
    stage, inputs, heard = STAGES["cache"], {"answers": answers.ref}, Heard()
    work = site.work(stage, spec, inputs, heard)
    assert count_shards(work, site) == 2
    run_shard(work, 1, site)
    made = {key for key in store.list("target_cache") if "/parts/" in key}
    assert made
    assert all("shard-00001" in key for key in made)
    ref = run_stage(work, site)
    alone = build(spec, target, answers, Store(tmp_path / "other"), tmp_path / "elsewhere")
    assert ref.content == alone.content
    assert made <= set(store.list("target_cache")), "what was made was kept, not made again"
