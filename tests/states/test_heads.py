"""Heads that a target ships, on an engine's states: they read the one behind the final norm, made of its last."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepspec.artifacts import open_artifact
from deepspec.errors import EngineError
from deepspec.states.wanted import layer_ids
from tests.given.engines.bench import Bench
from tests.given.engines.states import Served, serving
from tests.given.engines.training import SPEC, checksums, tokens_of, train
from tests.given.heard import Heard
from tests.given.published.caches import publish_answers, rows
from tests.given.targets import shipped

LAYERS, WIDTH = int(shipped.SIZES["num_hidden_layers"]), int(shipped.SIZES["hidden_size"])
LAST = (LAYERS,)
HEADS = SPEC.but(draft={"algorithm": "mtp"}, objective={"ttt_length": 2})


@pytest.fixture(scope="module", params=["qwen3", "qwen3_5"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = shipped.write_target(tmp_path_factory.mktemp("target"), request.param)
    tensors = load_file(target / shipped.SECOND)
    tensors["model.norm.weight"] += torch.rand(WIDTH)  # of ones alone, normed twice is once
    save_file(tensors, target / shipped.SECOND, metadata={"format": "pt"})
    return target


@pytest.fixture
def bench(bench: Bench) -> Bench:
    """Answers whose ids differ from file to file."""
    told = rows(19)
    bench.answers = publish_answers(bench.store, bench.folder, [told[:10], told[10:]], address="b")
    return bench


def test_an_engine_counts_the_embedding_as_its_first_and_has_no_state_behind_the_norm() -> None:
    assert layer_ids((-1, 1, 3), 6) == (0, 2, 4, 6)
    assert layer_ids((6,), 6) == (6,)
    assert layer_ids((1, 5, 6), 6) == (2, 6)
    assert layer_ids((5,), 6) == (6,)


@pytest.mark.parametrize("layers", [LAST, (1, LAYERS - 1, LAYERS)])
def test_an_engine_gives_the_states_that_transformers_gives(layers: tuple[int, ...], bench: Bench) -> None:
    spec = bench.spec(layers=layers)
    given = bench.opened(bench.capture(spec, layer_ids=layer_ids(layers, LAYERS)))
    here = bench.opened(bench.own(layers=layers))
    assert len(given) == len(here) == 19
    for number in range(19):
        one, other = given.record(number), here.record(number)
        torch.testing.assert_close(one.hidden, other.hidden, rtol=0.01, atol=1e-3)
        torch.testing.assert_close(one.last_hidden, other.last_hidden, rtol=0.01, atol=1e-3)


def test_a_last_state_that_is_normed_already_is_refused(bench: Bench) -> None:
    with pytest.raises(EngineError, match=r"norm and head over its last state give next tokens that are off"):
        bench.capture(bench.spec(layers=LAST), layer_ids=LAST, norm=True)


class Doubled(Served):
    """Gives its last layer's output at twice its size, which a norm undoes."""

    def _compute(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        states, following = super()._compute(ids)
        states[:, -1] *= 2
        return states, following


def test_the_last_layers_own_output_is_held_against_the_targets(bench: Bench) -> None:
    layers = (1, LAYERS - 1)
    engine = Doubled(folder=bench.staging, target=bench.target, layer_ids=layer_ids(layers, LAYERS))
    told = rf"what it gives as layer {LAYERS - 1} is nearer|layer {LAYERS - 1} is off"
    with serving(engine), pytest.raises(EngineError, match=told):
        bench.run(engine, spec=bench.spec(layers=layers))


def test_states_as_they_are_made_train_the_very_heads_that_a_cache_of_them_trains(bench: Bench) -> None:
    with serving(bench.served(layer_ids=LAST)) as engine:
        cache = open_artifact(bench.store, bench.run(engine, spec=bench.spec(layers=LAST)), bench.folder)
        stored = HEADS.but(source="cache", engine_version=None)
        one = train(bench.store, bench.folder, cache, bench.target, stored, Heard(), name="stored")
        args = (bench.store, bench.folder, tokens_of(bench, layers=LAST), bench.target, HEADS, bench.heard)
        other = train(*args, engine.endpoint, name="live")
    assert checksums(one, bench.store, bench.folder) == checksums(other, bench.store, bench.folder)
    assert bench.left() == []
