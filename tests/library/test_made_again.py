"""Other answers at the same address: the cache and the draft that were made from the old ones are made again."""

from pathlib import Path

from deepspec.artifacts import Artifact, ArtifactRef, read_manifest
from deepspec.catalog import catalog
from deepspec.placement import Placement
from deepspec.prepare.resolve import find_sources
from deepspec.prepare.spec import PrepareSpec
from deepspec.specs import Spec
from deepspec.stages import STAGES, Work, materialize
from deepspec.store import Store
from tests.given.heard import Heard
from tests.given.published.caches import placement_for, publish_answers, rows, spec_for
from tests.given.published.site import SMALL
from tests.given.targets.tiny import write_target


def states(store: Store) -> dict[str, str]:
    return {entry.kind: entry.state for entry in catalog(store)}


def test_other_answers_make_cache_and_draft_stale_and_they_are_rebuilt(tmp_path: Path) -> None:
    target, store, scratch = write_target(tmp_path / "target"), Store(tmp_path / "store"), tmp_path / "scratch"
    placement = placement_for(target, scratch, micro_batch=2)

    def made(name: str, spec: Spec, given: ArtifactRef) -> tuple[ArtifactRef, list[str]]:
        heard = Heard()
        work = Work(
            stage=STAGES[name], spec=spec, inputs={given.kind: given}, store=store, placement=placement, report=heard
        )
        return materialize(work), [line for line in heard.lines if "stale" in line]

    def both(answers: Artifact) -> tuple[ArtifactRef, ArtifactRef, list[str]]:
        cache, told = made("cache", spec_for(target), answers.ref)
        draft, then = made("train", SMALL, cache)
        return cache, draft, [*told, *then]

    first = both(publish_answers(store, scratch, [rows(25)]))
    assert first[2] == []
    store.delete("answers/a/manifest.json")
    answers = publish_answers(store, scratch, [[*rows(24), rows(25, seed=1)[24]]])
    assert states(store)["target_cache"] == "stale"
    cache, draft, told = both(answers)
    assert told == [f"{ref.prefix} is stale or incomplete; it is made again" for ref in (cache, draft)]
    assert [cache.address, draft.address] == [ref.address for ref in first[:2]]
    assert draft.content != first[1].content
    kept = read_manifest(store, "target_cache", cache.address)
    assert kept is not None
    assert kept.inputs["answers"].content == answers.ref.content
    assert states(store)["target_cache"] == states(store)["draft"] == "published"
    assert both(answers) == (cache, draft, []), "what is fresh is found"


def test_what_is_made_although_its_like_is_published_says_why(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What is two plus two?"}\n{"prompt": "And three?"}\n')
    found, store = find_sources([str(tmp_path / "rows.jsonl")]), Store(tmp_path / "store")
    placement = Placement(scratch=tmp_path / "scratch", locations=dict(found.locations))

    def lines(seed: int) -> tuple[ArtifactRef, list[str]]:
        spec, heard = PrepareSpec(sources=found.sources, seed=seed), Heard()
        stage = STAGES["prepare"]
        work = Work(stage=stage, spec=spec, inputs={}, store=store, placement=placement, report=heard)
        return materialize(work), [line for line in heard.lines if "made anew" in line]

    first, told = lines(1)
    assert told == []
    _, told = lines(2)
    assert told == [f"made anew: prompts/{first.address[:12]} was made with seed 1 (now 2)"]
