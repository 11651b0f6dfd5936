"""A published cache or draft that a plan names stands in for the stages before it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepspec.artifacts import ArtifactRef, read_manifest
from deepspec.cache.spec import CacheSpec
from deepspec.errors import NotPublishedError, SpecError
from deepspec.placement import Placement
from deepspec.prepare.spec import PrepareSpec, Source
from deepspec.publish import Out
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.specs import Spec, TargetId
from deepspec.stages import GREEDY, PRODUCTS, STAGES, address, stage_named
from deepspec.store import Store
from deepspec.train.spec import TrainSpec
from flows.chain import Chain, processor_seconds
from infra.site import Site
from tests.given.published.caches import build, publish_answers, rows, spec_for
from tests.given.published.evaluated import given
from tests.given.some import some
from tests.given.targets.tiny import write_target


def test_a_named_cache_is_trained_on_and_nothing_before_it_is_made(tmp_path: Path) -> None:
    store, target = Store(tmp_path / "store"), write_target(tmp_path / "target")
    ref = build(spec_for(target), target, publish_answers(store, tmp_path, [rows(4)]), store, tmp_path)
    site = Site(root=store.root)
    for name in ("target_cache/c", "c"):
        chain = Chain({}, site, {"cache": name})
        assert chain.caches() == {"target_cache": chain.published("cache")} == {"target_cache": ref}
        assert chain.steps == []
    with pytest.raises(SpecError, match="answers/a is of kind answers; wanted target_cache"):
        Chain({}, site, {"cache": "answers/a"}).caches()


TARGET = TargetId(config="c", weights="w", tokenizer="t", template="p")
SPECS: dict[str, Spec] = {
    "prepare": PrepareSpec(sources=(Source(name="a", digest="b"),)),
    "regenerate": RegenerateSpec(target=TARGET),
    "regenerate-greedy": RegenerateSpec(target=TARGET, held_out=9),
    "cache": CacheSpec(target=TARGET),
    "cache-greedy": CacheSpec(target=TARGET, splits=("validation",)),
    "train": TrainSpec(),
}


def publish(store: Store, scratch: Path, name: str, given: dict[str, ArtifactRef], **counts: Any) -> ArtifactRef:
    """Publish what a stage would make of some inputs."""
    stage = stage_named(PRODUCTS[name].stage)
    where = address(stage, SPECS[name], {each: ref.address for each, ref in given.items()})
    out = Out(store, stage.kind, where, given, scratch)
    out.file("a").write_text(name)
    return out.publish(SPECS[name], stage.version, counts)


@pytest.mark.parametrize("held_out", [3, 0])
def test_training_reads_greedy_answers_where_a_prompt_is_held_out(tmp_path: Path, held_out: int) -> None:
    """Of few prompts a share may be none: then nothing is asked greedily, and nothing waits for it."""
    store = Store(tmp_path / "store")
    chain = Chain(SPECS, Site(root=store.root, placement=Placement(scratch=tmp_path / "scratch")))
    prompts = publish(store, tmp_path, "prepare", {}, splits={"train": 9, "validation": held_out})
    answers = publish(store, tmp_path, "regenerate", {"prompts": prompts})
    wanted = {"target_cache": publish(store, tmp_path, "cache", {"answers": answers})}
    if held_out:
        with pytest.raises(NotPublishedError, match=r"run first: deepspec regenerate \(or"):
            chain.inputs("train")
        greedy = publish(store, tmp_path, "regenerate-greedy", {"prompts": prompts})
        assert greedy.address != answers.address
        with pytest.raises(NotPublishedError, match=r"run first: deepspec cache \(or"):
            chain.inputs("train")
        wanted["greedy_cache"] = publish(store, tmp_path, "cache-greedy", {"answers": greedy})
    assert chain.inputs("train") == wanted
    draft = publish(store, tmp_path, "train", wanted)
    assert chain.published("train") == draft
    assert set(some(read_manifest(store, "draft", draft.address)).inputs) == set(wanted)


def test_what_a_run_makes_is_made_of_what_comes_before_it() -> None:
    """Each stage makes one thing of its own name; inputs are of the kinds that the stage reads."""
    kinds = {name: stage_named(product.stage).kind for name, product in PRODUCTS.items()}
    assert [name for name in PRODUCTS if name not in GREEDY] == list(STAGES)
    for place, (name, product) in enumerate(PRODUCTS.items()):
        assert set(product.inputs.values()) <= set(list(PRODUCTS)[:place])
        stage = stage_named(product.stage)
        assert set(product.inputs) == {*stage.inputs, *stage.optional}, name
        assert all(kinds[made] == each for each, made in product.inputs.items() if each in stage.inputs)


def test_a_named_draft_is_measured_and_nothing_is_trained(tmp_path: Path) -> None:
    draft = given(tmp_path).draft
    chain = Chain({}, Site(root=draft.store.root), {"cache": None, "train": "draft/a"})
    assert chain.draft() == chain.published("train") == draft.ref
    assert chain.steps == []


def test_what_a_child_and_its_own_child_computed_is_counted() -> None:
    """Each computes until its own clock of the processor says a tenth of a second."""
    computes = "import time\nwhile time.process_time() < 0.1: pass"
    before = processor_seconds()
    nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {computes!r}], check=True)\n{computes}"
    subprocess.run([sys.executable, "-c", nested], check=True)
    assert processor_seconds() - before >= 0.2
