"""Looks tell the accepted length of decoding: counted by sample, summed over batches, by kind and by slot."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.artifacts import Artifact, open_artifact
from deepspec.asking.sampling import Sampling
from deepspec.cache.run import run as capture
from deepspec.errors import SourceError
from deepspec.formats.recipe import AlgorithmName
from deepspec.proposers.propose import proposer_for
from deepspec.records.batch import collate
from deepspec.records.stream import Cut
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.rounds.measure import estimates, tally
from deepspec.steps.ranks import Ranks
from deepspec.steps.stop import StopSignal
from deepspec.store import Store
from deepspec.target.load import Target
from deepspec.target_cache.facts import Sampled
from deepspec.train.accepted import AcceptedLength, AnswersKnown
from deepspec.train.loop import Loop
from deepspec.train.narrator import UNWALKED, look_told
from deepspec.train.run import run
from deepspec.train.spec import TrainSpec
from deepspec.train.task import Task, add
from deepspec.train.validation import HeldOut
from tests.given.drafts import pairs
from tests.given.drafts.held_out import LAYERS, decoded, record
from tests.given.drafts.toy import ToySamples
from tests.given.heard import Heard
from tests.given.published.caches import build, out_for, placement_for, publish_answers, rows, spec_for
from tests.given.published.site import SMALL, Site
from tests.given.some import some
from tests.given.targets.tiny import write_target

VOCAB, MASK = 6, 5
SPEC = TrainSpec(
    steps=6, global_batch=4, precision="fp32", validate_every=2, learning_rate=0.02, objective={"num_anchors": 16}
)


class Answers(ToySamples):
    """Greedy answers of a tiny target, through their stop tokens."""

    def __init__(self, target: Target, seed: int, count: int = 12, layers: Any = LAYERS) -> None:
        generator = torch.Generator().manual_seed(seed)
        asked = [torch.randint(2, MASK, (4,), generator=generator).tolist() for _ in range(count * 20)]
        ended = [each for each in decoded(target, asked, max_new_tokens=60) if each.finish_reason == "stop"]
        fit = [each for each in ended if len(each.tokens) > 2 and MASK not in each.tokens][:count]
        self.prompts = [asked[int(each.sample_id)] for each in fit]
        self.answers = [each.tokens for each in fit]
        pairs = zip(self.prompts, self.answers, strict=True)
        self.records = [record(target, f"{seed}-{number}", *pair, layers) for number, pair in enumerate(pairs)]


def task_of(target: Target, spec: TrainSpec = SPEC, algorithm: AlgorithmName = "dspark") -> Task:
    traits: dict[str, Any] = {"markov_rank": 4} if algorithm == "dspark" else {}
    model = pairs.draft(target, algorithm, **traits)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("embed_tokens", "lm_head")))
    return Task(
        spec=spec, config=model.config, model=model, algorithm=ALGORITHMS[algorithm], device=torch.device("cpu")
    )


def loop_of(target: Target, spec: TrainSpec = SPEC, algorithm: AlgorithmName = "dspark", sampled: Any = None) -> Loop:
    """Return a loop that learns greedy answers and looks at others."""
    task = task_of(target, spec, algorithm)
    layers = task.config.target_layer_ids
    loop = Loop(task, Answers(target, seed=5, layers=layers), Ranks("cpu"), Cut(ranks=1, micro_batch=3))
    loop.held_out = Answers(target, seed=6, layers=layers)
    kinds = {f"6-{number}": "even" if number % 2 == 0 else "odd" for number in range(12)}
    loop.answered = AnswersKnown(sampled=sampled, stop_ids=target.stop_ids, kinds=kinds)
    return loop


def held_out(loop: Loop) -> Answers:
    """Return what a loop looks at."""
    assert isinstance(loop.held_out, Answers)
    return loop.held_out


@pytest.fixture(scope="module")
def target() -> Target:
    return pairs.target(VOCAB, sharpness=2.0)


@pytest.mark.parametrize("algorithm", ["dspark", "dflash", "eagle3", "peagle", "mtp"])
def test_a_look_tells_what_decoding_with_that_draft_gives(target: Target, algorithm: AlgorithmName) -> None:
    loop = loop_of(target, algorithm=algorithm, sampled=Sampled(temperature=0.0))
    loop.run(None)
    look, held = loop.progress.looks()[-1], held_out(loop)
    proposer = proposer_for(loop.task.model.eval(), stop_ids=target.stop_ids)
    wanted = tally(decoded(target, held.prompts, proposer, max_new_tokens=60), loop.task.config.block_size)
    length = estimates(wanted)["accepted_length"]
    assert look["accepted_length"] == look["accepted_length_greedy"] == pytest.approx(length.value)
    assert look["accepted_length_low"] < look["accepted_length"] < look["accepted_length_high"]
    assert look["known_greedy"] == 1
    assert look["cut_greedy"] == 0
    assert "accepted_length_sampled" not in look
    for slot in range(loop.task.config.block_size):
        if wanted.reached.sum(0)[slot]:
            share = wanted.accepted.sum(0)[slot] / wanted.reached.sum(0)[slot]
            assert look[f"accepted@{slot}"] == pytest.approx(share)


def test_a_look_tells_each_kind_of_prompt(target: Target) -> None:
    loop = loop_of(target, sampled=Sampled(temperature=0.0))
    look, held = some(some(loop.validation).look(StopSignal())), held_out(loop)
    proposer = proposer_for(loop.task.model.eval(), stop_ids=target.stop_ids)
    every = decoded(target, held.prompts, proposer, max_new_tokens=60)
    for kind, first in (("even", 0), ("odd", 1)):
        wanted = estimates(tally(every[first::2], 4))["accepted_length"]
        assert look[f"accepted_length/{kind}"] == pytest.approx(wanted.value)
        assert look[f"accepted_length_low/{kind}"] <= wanted.value <= look[f"accepted_length_high/{kind}"]


def test_answers_that_were_sampled_are_watched_as_such(target: Target) -> None:
    loop = loop_of(target, sampled=Sampled(temperature=1.0))
    look = some(some(loop.validation).look(StopSignal()))
    assert look["accepted_length"] == look["accepted_length_sampled"] != look["accepted_length_greedy"]
    assert look["cut_sampled"] == 0


@pytest.fixture(scope="module")
def three(target: Target) -> list[Answers]:
    """Samples to learn, to look at, and greedy answers to four prompts beside those."""
    return [Answers(target, seed=seed, count=4) for seed in (5, 6, 7)]


def beside(target: Target, three: list[Answers], sampled: Any, most: int) -> Loop:
    """Return a loop with greedy answers beside others; none of them where `most` is 0."""
    train, held_out, greedy = three
    torch.manual_seed(0)
    loop = Loop(task_of(target), train, Ranks("cpu"), Cut(ranks=1, micro_batch=3))
    loop.held_out, loop.answered = held_out, AnswersKnown(sampled=sampled, stop_ids=target.stop_ids)
    kinds = {each.sample_id: "even" if number % 2 == 0 else "odd" for number, each in enumerate(greedy.records)}
    answered = AnswersKnown(sampled=Sampled(temperature=0.0), stop_ids=target.stop_ids, kinds=kinds)
    loop.greedy = HeldOut(samples=greedy, answered=answered, most=most) if most else None
    return loop


@pytest.mark.parametrize("sampled", [Sampled(temperature=1.0), None])
def test_greedy_answers_beside_sampled_ones_tell_the_length_at_temperature_0(
    target: Target, three: list[Answers], sampled: Sampled | None
) -> None:
    """Three of four are looked at. Where nobody knows how the others were sampled, theirs is watched."""
    loop = beside(target, three, sampled, most=3)
    look, chosen = some(some(loop.validation).look(StopSignal())), some(some(loop.validation)._greedy)[0].ids
    pairs = zip(three[2].records, three[2].prompts, strict=True)
    prompts = [prompt for each, prompt in pairs if each.sample_id in chosen]
    assert len(prompts) == 3
    proposer = proposer_for(loop.task.model.eval(), stop_ids=target.stop_ids)
    wanted = tally(decoded(target, prompts, proposer, max_new_tokens=60), loop.task.config.block_size)
    assert look["accepted_length_greedy"] == pytest.approx(estimates(wanted)["accepted_length"].value)
    assert (look["known_greedy"], look["cut_greedy"]) == (1, 0)
    assert look["accepted_greedy@0"] == pytest.approx(wanted.accepted.sum(0)[0] / wanted.reached.sum(0)[0])
    assert {"accepted_length_greedy/even", "accepted_length_greedy_low/odd"} <= look.keys()
    watched = "greedy" if sampled is None else "sampled"
    assert look["accepted_length"] == look[f"accepted_length_{watched}"]
    assert (look["accepted@0"] == look["accepted_greedy@0"]) == (sampled is None)


def test_greedy_answers_change_nothing_else_of_a_run(target: Target, three: list[Answers]) -> None:
    alone, with_them = (beside(target, three, Sampled(temperature=1.0), most) for most in (0, 1))
    for loop in (alone, with_them):
        loop.total = 3
        loop.run(None)
    pairs = list(zip(alone.progress.rows, with_them.progress.rows, strict=True))
    assert all(one[name] == other[name] for one, other in pairs for name in ("split", "step", "loss"))
    assert [one.get("accepted_length") for one, _ in pairs] == [other.get("accepted_length") for _, other in pairs]
    weights = zip(alone.task.model.parameters(), with_them.task.model.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in weights)


@pytest.mark.parametrize("greedy", [True, False])
def test_of_answers_sampled_nobody_knows_how_those_that_are_mostly_greedy_are_watched(
    target: Target, greedy: bool
) -> None:
    loop = loop_of(target)
    if not greedy:
        for each in held_out(loop).records:
            each.input_ids[5:-1] = (each.input_ids[5:-1] - 1) % 3 + 2
    look = some(some(loop.validation).look(StopSignal()))
    assert ("accepted_length" in look) == greedy
    assert look["known_greedy"] == 1 if greedy else look["known_greedy"] < 0.5


def test_how_samples_are_cut_into_batches_changes_nothing(target: Target) -> None:
    """Ranks sum the same way: each has rows of its own."""
    samples = Answers(target, seed=6)
    names = [each.sample_id for each in samples.records]
    task = task_of(target)

    def metrics(*groups: Iterable[int]) -> dict[str, Any]:
        counted = AcceptedLength(task, names, AnswersKnown(sampled=Sampled(temperature=0.7), stop_ids=target.stop_ids))
        sums: dict[str, torch.Tensor] = {}
        for group in groups:
            add(sums, counted.sums(collate([samples.records[number] for number in group])))
        return counted.metrics(sums)

    whole = metrics(range(12))
    assert whole["accepted_length_low"] < whole["accepted_length_high"]
    assert metrics([3, 7, 2], [0, 1], [4, 5, 6], [11, 10, 9, 8]) == pytest.approx(whole, rel=1e-5)


def test_the_best_look_is_the_one_of_the_longest_rounds(target: Target) -> None:
    """And its weights are kept, though another look has the lower loss."""
    spec = SPEC.but(steps=18, validate_every=2, learning_rate=0.05, keep="best")
    loop = loop_of(target, spec, sampled=Sampled(temperature=0.0))
    loop.run(None)
    looks = loop.progress.looks()[1:]
    best = max(looks, key=lambda look: look["accepted_length"])
    assert loop.progress.best_look() is best
    assert best is not min(looks, key=lambda look: look["loss"])
    by_loss = loop_of(target, spec.but(watch="loss"), sampled=Sampled(temperature=0.0))
    by_loss.run(None)
    assert some(by_loss.progress.best_look())["step"] == min(looks, key=lambda look: look["loss"])["step"]


def test_patience_ends_with_rounds_that_grow_no_longer(target: Target) -> None:
    spec = SPEC.but(steps=400, validate_every=2, learning_rate=0.05, patience=3)
    loop = loop_of(target, spec, sampled=Sampled(temperature=0.0))
    loop.run(None)
    lengths = [look["accepted_length"] for look in loop.progress.looks()]
    assert loop.progress.step < 400
    assert len(lengths) - 1 - int(np.argmax(lengths)) == 3


def site_of(root: Any, **sampling: Any) -> Site:
    """Return a site whose answers tell how they were sampled, though they were not sampled so."""
    store, scratch = Store(root / "store"), root / "scratch"
    folder = write_target(root / "target")
    some = [{**row, "source": f"kind {number // 5 % 2}"} for number, row in enumerate(rows(25))]
    spec = RegenerateSpec(target=spec_for(folder).target, sampling=Sampling(**sampling))
    answers = publish_answers(store, scratch, [some], spec=spec)
    cache = open_artifact(store, build(spec_for(folder), folder, answers, store, scratch), scratch)
    return Site(root=root, store=store, cache=cache, placement=placement_for(folder, scratch, micro_batch=2))


def test_a_run_tells_its_curve_in_rows_log_table_and_picture(tmp_path: Path) -> None:
    site, heard = site_of(tmp_path, temperature=0.7, top_p=0.99), Heard()
    ref, counts = site.train(SMALL, "sampled", heard)
    rows = [json.loads(line) for line in site.open(ref).read_bytes("metrics.jsonl").splitlines()]
    looks = [row for row in rows if row["split"] == "validation"]
    assert [look["step"] for look in looks] == [0, 4, 8]
    assert all(look["accepted_length"] == look["accepted_length_sampled"] >= 1 for look in looks)
    assert {"accepted_length/kind 0", "accepted_length/kind 1", "accepted@0"} <= looks[0].keys()
    assert [line for line in heard.lines if line.startswith("step 8, held out: accepted length ")]
    assert any(line.startswith("looks at held-out samples took ") for line in heard.lines)
    assert [row["step"] for row in heard.tables["held-out"]] == [0, 4, 8]
    assert heard.figures["learning-curve"].startswith(b"\x89PNG")
    assert counts["held_out"]["accepted_length"] == looks[-1]["accepted_length"]
    assert counts["walk_seconds"] <= counts["look_seconds"]


def greedy_beside(site: Site, layers: Any = (-1, 1, 3)) -> Artifact:
    """Return the cache of the target's own greedy answers to five of a site's held-out prompts."""
    folder = site.root / "target"
    spec = RegenerateSpec(target=spec_for(folder).target, sampling=Sampling(temperature=0.0), held_out=5)
    held_out = [row for row in rows(25) if row["split"] == "validation"]
    scratch = site.placement.scratch
    answers, name = publish_answers(site.store, scratch, [held_out], "greedy", spec), f"greedy-{len(layers)}"
    made = spec_for(folder, splits=("validation",), layers=layers)
    out = out_for(site.store, scratch, answers, name)
    counts = capture(made, {"answers": answers}, out, placement_for(folder, scratch), Heard())
    return open_artifact(site.store, out.publish(made, 1, counts), scratch)


def test_a_run_reads_greedy_answers_from_a_cache_of_their_own(tmp_path: Path) -> None:
    """These are no greedy ones: their first tokens alone are walked, and all of them are counted as cut."""
    site, heard = site_of(tmp_path, temperature=0.7, top_p=0.99), Heard()
    inputs = {"target_cache": site.cache, "greedy_cache": greedy_beside(site)}
    counts = run(SMALL.but(greedy_samples=4), inputs, site.out("beside"), site.placement, heard)
    assert counts["held_out"]["cut_greedy"] == 4
    assert counts["held_out"]["known_greedy"] < 0.5
    assert counts["held_out"]["accepted_length"] == counts["held_out"]["accepted_length_sampled"]
    with pytest.raises(SourceError, match=r"its states in other layers \(\(0, 1\)\)"):
        run(SMALL, {**inputs, "greedy_cache": greedy_beside(site, (0, 1))}, site.out("other"), site.placement, heard)


def test_a_run_says_where_no_round_can_be_walked(site: Site) -> None:
    """The answers of this site are no words of its target, and nobody knows how they were sampled."""
    heard = Heard()
    _, counts = site.train(SMALL, "unwalked", heard)
    assert UNWALKED in heard.lines
    assert "accepted_length" not in counts["held_out"]
    quiet = Heard()
    _, counts = site.train(SMALL.but(watch="loss", walked_tokens=0), "not-asked", quiet)
    assert UNWALKED not in quiet.lines
    assert not [name for name in counts["held_out"] if name.startswith("accepted_length")]


def test_nothing_to_watch_is_refused_where_something_goes_by_it() -> None:
    with pytest.raises(ValueError, match="set walked_tokens above 0, or watch=loss"):
        TrainSpec(keep="best", walked_tokens=0)
    TrainSpec(keep="best", walked_tokens=0, watch="loss")


def test_a_look_is_told_in_one_line() -> None:
    look = {"loss": 1.25, "accepted_length_greedy": 2.5, "accepted_length_greedy_low": 2.25}
    assert look_told({**look, "accepted_length_greedy_high": 2.75}) == (
        "accepted length 2.500 (2.250 to 2.750) greedily; loss 1.2500"
    )
    assert look_told({**look, "accepted_length_greedy_high": 2.75, "known_greedy": 0.4}) == (
        "accepted length 2.500 (2.250 to 2.750) greedily over 40% of the answers' tokens; loss 1.2500"
    )
    assert look_told({"loss": 1.25}) == "loss 1.2500"
