"""A cache whose states an engine gave, end to end over a small server that speaks as vLLM does."""

import pytest
import torch

from deepspec.artifacts import open_artifact
from deepspec.cache.verify import verify_cache
from deepspec.errors import SpecError
from deepspec.passes.live import open_cache
from deepspec.states.staging import sweep
from tests.given.engines.bench import Bench
from tests.given.engines.states import VERSION_SERVED, serving
from tests.given.published.caches import placement_for


def test_an_engine_gives_the_cache_that_transformers_gives(bench: Bench) -> None:
    ref = bench.capture()
    given, here = bench.opened(ref), bench.opened(bench.own())
    assert len(given) == len(here) == 19
    for number in range(19):
        one, other = given.record(number), here.record(number)
        assert one.sample_id == other.sample_id
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.loss_mask, other.loss_mask)
        torch.testing.assert_close(one.hidden, other.hidden, rtol=0.01, atol=1e-3)
        torch.testing.assert_close(one.last_hidden, other.last_hidden, rtol=0.01, atol=1e-3)


def test_the_manifest_says_which_engine_it_was(bench: Bench) -> None:
    facts = bench.opened(bench.capture()).facts
    assert facts.engine is not None
    assert (facts.engine.name, facts.engine.version, facts.engine.quantization) == ("vllm", VERSION_SERVED, None)
    assert (facts.layers, facts.num_layers, facts.dtype) == ((-1, 1, 3), 6, "float32")


def test_nothing_is_left_of_what_the_engine_wrote(bench: Bench) -> None:
    with serving(bench.served()) as engine:
        bench.run(engine)
        assert len(engine.names) == 19 + 3  # and the prompts of the proof
    assert bench.left() == []


def test_several_engines_share_the_samples_and_one_that_dies_costs_nothing(bench: Bench) -> None:
    with serving(bench.served()) as well, serving(bench.served(dies_at=5)) as sick:
        ref = bench.run(well, sick)
    assert len(bench.opened(ref)) == 19
    assert len(sick.asked) >= 5
    sweep(bench.staging)  # an engine that dies may leave a request open: then the next run takes the mark of this one
    assert bench.left() == []


def test_a_cache_of_an_engine_is_verified_within_its_tolerance_and_not_rolled(bench: Bench) -> None:
    artifact = open_artifact(bench.store, bench.capture(), bench.folder)
    place = placement_for(bench.target, bench.folder)
    assert verify_cache(artifact, place, bench.heard).sound
    assert len(open_cache(artifact, place, "online")) == 19
    with pytest.raises(SpecError, match=r"promises the very bytes"):
        open_cache(artifact, place, "rolling")
