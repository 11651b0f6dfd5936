import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.checkpoint.draft import load_draft
from deepspec.errors import CancelledError, CheckpointError, StoreError, TargetError
from deepspec.records.stream import Draw
from deepspec.steps.checkpoint import Checkpoints, SavedState
from deepspec.steps.ranks import Ranks
from deepspec.target_cache.cache import TargetCache
from deepspec.train import narrator
from deepspec.train.ready import make_loop
from tests.given.drafts.recipes import aimed, sized
from tests.given.heard import Heard
from tests.given.published.site import SMALL, Site, make_site
from tests.given.some import some

FILES = ["config.json", "learning_curve.png", "metrics.jsonl", "model.safetensors", "training_state.safetensors"]


def test_a_run_publishes_a_draft_that_loads_and_tells_what_it_is(site: Site) -> None:
    ref, counts = site.train(SMALL, "whole")
    artifact = open_artifact(site.store, ref, site.placement.scratch)
    assert artifact.names() == FILES
    model = load_draft(artifact.path("config.json").parent)
    assert model.config.algorithm == "dspark"
    assert list(model.config.target_layer_ids) == counts["layers"] == [-1, 1, 3]
    assert counts["steps"] == 8
    assert counts["samples"] == 32
    assert counts["untrained"]["step"] == 0
    assert counts["held_out"]["step"] == 8
    assert counts["held_out"]["loss"] < counts["untrained"]["loss"]
    assert counts["held_out"]["tau"] >= 1.0
    assert artifact.path("learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    rows = [json.loads(line) for line in artifact.read_bytes("metrics.jsonl").splitlines()]
    assert sum(row["split"] == "train" for row in rows) == 8


def test_a_run_that_is_looked_at_once_trains_the_same_draft_and_tells_how_long_a_step_took(site: Site) -> None:
    whole, _ = site.train(SMALL, "all looks")
    spec = SMALL.but(validate_every=1000, untrained_look=False)
    once, counts = site.train(spec, "one look")
    weights = [site.checksums(ref)["model.safetensors"] for ref in (whole, once)]
    assert weights[0] == weights[1]
    rows = [json.loads(line) for line in site.open(once).read_bytes("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [8]
    assert counts["untrained"] is None
    assert counts["held_out"]["step"] == 8
    assert counts["step_cpu_seconds"] > 0


def test_the_embedding_and_the_head_are_the_targets_and_stay_so(site: Site) -> None:
    ref, _ = site.train(SMALL.but(steps=1), "frozen")
    model = load_draft(open_artifact(site.store, ref, site.placement.scratch).path("config.json").parent)
    target = load_file(site.root / "target" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.embed_tokens.weight, target)
    assert torch.equal(model.lm_head.weight, target)


def test_a_draft_that_starts_from_the_target_starts_elsewhere_and_learns(site: Site) -> None:
    _, at_random = site.train(SMALL, "at-random")
    _, counts = site.train(SMALL.but(start="target"), "from-target")
    assert counts["untrained"]["loss"] != at_random["untrained"]["loss"]
    assert counts["held_out"]["loss"] < counts["untrained"]["loss"]


def test_states_that_the_target_computes_now_train_the_same_draft_as_stored_ones(site: Site) -> None:
    stored, _ = site.train(SMALL, "stored")
    rolling, _ = site.train(SMALL.but(source="rolling"), "rolling")
    assert site.checksums(rolling) == site.checksums(stored)
    _, counts = site.train(SMALL.but(source="online"), "online")
    told = site.open(stored).counts
    assert counts["held_out"]["loss"] == pytest.approx(told["held_out"]["loss"], rel=0.02)  # not rounded to bf16


@pytest.mark.parametrize(
    ("algorithm", "objective"),
    [
        ("dflash", {}), ("dflash", {"slot_weights": "dpace"}), ("dflash2", {}), ("eagle3", {}), ("peagle", {}),
        ("xpress", {}),
        ("eagle3", {"reverse_kl": 1.0}), ("dflash", {"convention": "speculators", "log_acceptance": 1.0}),
    ],
)  # fmt: skip
def test_every_algorithm_trains(site: Site, algorithm: str, objective: dict[str, Any]) -> None:
    small = {
        "dflash2": {"conv_group_size": 4, "selector_rank": 4, "selector_top_k": 3}, "xpress": {"xpress_rank": 4},
    }.get(algorithm, {})  # fmt: skip
    shape = {**sized(algorithm, block_size=3), **small}
    spec = SMALL.but(draft=shape, steps=3, objective={**aimed(algorithm, num_anchors=4, ttt_length=2), **objective})
    _, counts = site.train(spec, algorithm)
    assert counts["algorithm"] == algorithm
    assert counts["held_out"]["loss"] < counts["untrained"]["loss"]


def test_a_reduced_vocabulary_holds_the_most_frequent_tokens_of_the_answers(site: Site) -> None:
    spec = SMALL.but(
        draft={"algorithm": "eagle3", "draft_vocab_size": 6}, steps=3, objective={"ttt_length": 2}, keep="best"
    )
    ref, counts = site.train(spec, "reduced")
    draft = load_draft(site.open(ref).path("config.json").parent)
    cache = TargetCache(site.cache, site.placement.scratch)
    answered = [record.input_ids[record.loss_mask] for record in cache.stream(cache.numbers("train"))]
    often = torch.cat(answered).bincount(minlength=draft.config.vocab_size)
    known, unknown = often[draft.t2d], often[~draft.t2d]
    assert len(known) == 6
    assert known.min() >= unknown.max()
    target = load_file(site.root / "target" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(draft.lm_head.weight, target[draft.known_ids()])
    assert 0.2 < counts["held_out"]["coverage"] < 1
    assert counts["held_out"]["loss"] < counts["untrained"]["loss"]


@pytest.mark.parametrize("algorithm", ["dspark", "dflash", "eagle3"])
def test_looks_of_a_reduced_vocabulary_count_acceptance_against_all_that_the_target_says(
    site: Site, algorithm: str
) -> None:
    """A draft that says nothing gives each of its six tokens 1/6: the target keeps Σ min(p, 1/6) of them."""
    spec = SMALL.but(
        draft=sized(algorithm, draft_vocab_size=6, block_size=2), bigram_samples=0,
        objective=aimed(algorithm, num_anchors=4, ttt_length=1),
    )  # fmt: skip
    cache = TargetCache(site.cache, site.placement.scratch)
    loop = make_loop(spec, cache, Ranks("cpu"), site.placement, lambda _: None)
    task, model = loop.task, loop.task.model
    model.norm.weight.data.zero_()
    micro = loop.reader.read([[Draw(number=some(loop.held_out).order(0)[0], epoch=0, key=1)]])
    micro, chosen = micro.to(task.device, task.dtype), micro.supervision
    with torch.no_grad():
        looked = task.loss(micro, chosen.denominators)
    trained = task.loss(micro, chosen.denominators, measure=task.measures(0))
    said = (micro.batch.last_hidden[0].float() @ some(model.target_head()).T).softmax(-1)
    kept = said[:, model.known_ids()].clamp(max=1 / 6).sum(-1)
    grid = chosen.supervised[0]
    where = grid[0].nonzero()[:, 0] + 1 if algorithm == "eagle3" else chosen.labels[0][grid] - 1
    torch.testing.assert_close(looked.sums["accept"].sum(), kept[where].sum(), rtol=1e-5, atol=1e-5)
    assert "tau" in task.algorithm.metrics(looked.sums)
    assert "tau" not in task.algorithm.metrics(trained.sums)
    torch.testing.assert_close(looked.loss, trained.loss.detach())


@pytest.mark.parametrize(("algorithm", "steps"), [("dflash", [1, 9]), ("dspark", [*range(1, 11)])])
def test_acceptance_that_the_loss_does_not_need_is_counted_at_every_eighth_step(
    site: Site, algorithm: str, steps: list[int]
) -> None:
    """A DFlash loss is held against labels alone; what a DSpark loss reads of the target tells acceptance anyway."""
    ref, _ = site.train(SMALL.but(draft={"algorithm": algorithm}, steps=10), f"counted-{algorithm}")
    rows = [json.loads(line) for line in site.open(ref).read_bytes("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train" and "tau" in row] == steps
    assert all("tau" in row for row in rows if row["split"] == "validation")


def test_the_published_numbers_are_those_of_the_weights_that_could_be_saved(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 6 on nothing can be saved: the draft is that of step 4, and so are its numbers."""
    spec = SMALL.but(keep="best", validate_every=2, checkpoint_every=100)
    real = Checkpoints._write

    def write(self: Checkpoints, state: SavedState) -> None:
        if state.step >= 6:
            raise StoreError("cannot write: no space left on device")
        real(self, state)

    monkeypatch.setattr(Checkpoints, "_write", write)
    ref, counts = site.train(spec, "best-lost")
    rows = [json.loads(line) for line in site.open(ref).read_bytes("metrics.jsonl").splitlines()]
    looks = {row["step"]: row for row in rows if row["split"] == "validation"}
    assert looks[8]["loss"] < looks[6]["loss"] < looks[4]["loss"]
    assert counts["kept_step"] == 4
    assert counts["held_out"] == looks[4]
    monkeypatch.undo()
    undisturbed, told = site.train(spec, "best-kept")
    assert told["kept_step"] == 8
    assert told["held_out"]["step"] == 8
    assert site.checksums(undisturbed)["model.safetensors"] != site.checksums(ref)["model.safetensors"]


def test_what_judges_by_held_out_samples_says_that_there_are_none(tmp_path: Path) -> None:
    everything = make_site(tmp_path, split="train")
    heard = Heard()
    _, counts = everything.train(SMALL.but(steps=1, keep="best", patience=2), "unjudged", heard)
    wanted = (
        "nothing to judge by: the weights of the last step become the draft (train.keep=best) and training goes on to "
        "its last step (train.patience); the cache has no sample in its validation split (prepare.splits)"
    )
    assert wanted in heard.lines
    assert (counts["kept_step"], counts["held_out"]) == (1, None)
    heard = Heard()
    everything.train(SMALL.but(steps=1), "unasked", heard)
    assert not any("nothing to judge by" in line for line in heard.lines)


def test_a_step_of_more_samples_than_there_are_is_told(site: Site) -> None:
    heard, usual = Heard(), Heard()
    site.train(SMALL.but(steps=None, epochs=1, global_batch=30), "many", heard)
    site.train(SMALL.but(steps=1), "few", usual)
    told = "a step takes 30 samples (train.global_batch) and there are 20 in the training split: each of them 1.5 times"
    assert any(line.startswith(told) for line in heard.lines)
    assert not any("train.global_batch" in line for line in usual.lines)


def test_equal_runs_publish_equal_bytes(site: Site) -> None:
    spec = SMALL.but(precision="bf16", steps=4)
    one, _ = site.train(spec, "one")
    other, _ = site.train(spec, "other")
    assert one.content == other.content


@pytest.mark.parametrize(("seed", "start"), [(0, "random"), (1, "fitted"), (2, "target")])
def test_terminated_and_run_again_publishes_the_bytes_of_an_undisturbed_run(
    site: Site, seed: int, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are those that were saved: for a start nothing is read again."""
    monkeypatch.setattr(narrator, "PROGRESS_SECONDS", 0.0)
    spec = SMALL.but(seed=seed, start=start, draft={**SMALL.draft.model_dump(), "shape": "target"})
    undisturbed, _ = site.train(spec, f"undisturbed-{seed}")
    report = Terminating(after=4 + seed)
    with pytest.raises(CancelledError):
        site.train(spec, f"terminated-{seed}", report)
    again = Heard()
    for name in ("deepspec.start.bigrams.read_bigrams", "deepspec.start.fitted.Anchors.read"):
        monkeypatch.setattr(name, _never)
    ref, counts = site.train(spec, f"terminated-{seed}", again)
    assert any(f"going on after step {4 + seed} of 8" in line for line in again.lines)
    assert not any("its loss was computed" in line for line in again.lines)
    assert site.checksums(ref) == site.checksums(undisturbed)
    assert counts["steps"] == 8


def _never(*_: object) -> None:
    raise AssertionError("a start was read")


def test_the_tensors_of_a_state_are_let_go_of_once_training_goes_on_from_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are three times the weights, beside the optimizer's own."""
    monkeypatch.setattr(narrator, "PROGRESS_SECONDS", 0.0)
    with pytest.raises(CancelledError):
        site.train(SMALL, "let-go", Terminating(after=4))
    read: list[SavedState] = []
    newest = Checkpoints.newest

    def keeping(checkpoints: Checkpoints) -> SavedState | None:
        state = newest(checkpoints)
        assert state is not None
        read.append(state)
        return state

    monkeypatch.setattr(Checkpoints, "newest", keeping)
    _, counts = site.train(SMALL, "let-go")
    assert counts["steps"] == 8
    assert [(state.step, state.tensors) for state in read] == [(4, {})]


def test_a_run_that_goes_on_with_another_kernel_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums round otherwise from there on: the state and the manifest tell which kernel it was."""
    monkeypatch.setattr(narrator, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("deepspec.train.task.kernel_of", lambda device: "triton")
    with pytest.raises(CancelledError):
        site.train(SMALL, "elsewhere", Terminating(after=2))
    monkeypatch.undo()
    report = Heard()
    _, counts = site.train(SMALL, "elsewhere", report)
    assert any("its loss was computed by triton, here it is by torch" in line for line in report.lines)
    assert counts["kernel"] == "torch"


def test_a_finished_run_can_be_continued_on_a_new_schedule(site: Site) -> None:
    _, first = site.train(SMALL, "first-leg")
    report = Heard()
    _, second = site.train(SMALL.but(continue_from="first-leg", seed=5), "second-leg", report)
    assert "8 steps old, with its optimizer state on a new schedule of 8 steps" in report.lines[0]
    assert report.lines[0].startswith("warning")
    assert second["untrained"]["loss"] == pytest.approx(first["held_out"]["loss"], rel=0.2)  # other anchors
    assert second["held_out"]["loss"] < first["held_out"]["loss"]


def test_a_warm_start_takes_the_weights_of_a_draft_or_of_a_checkpoint_folder(site: Site, tmp_path: Path) -> None:
    ref, first = site.train(SMALL, "teacher")
    artifact = open_artifact(site.store, ref, site.placement.scratch)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes(artifact.read_bytes(file))
    _, from_draft = site.train(SMALL.but(warm_start="teacher"), "pupil-of-draft")
    locations = {**site.placement.locations, "0123abcd": str(tmp_path)}
    _, from_folder = site.train(SMALL.but(warm_start="0123abcd"), "pupil-of-folder", locations=locations)
    assert from_draft["untrained"] == from_folder["untrained"]
    assert from_draft["untrained"]["loss"] == pytest.approx(first["held_out"]["loss"])


def test_what_to_begin_with_must_be_there_and_fit(site: Site) -> None:
    with pytest.raises(CheckpointError, match="there is no draft nobody to begin with"):
        site.train(SMALL.but(continue_from="nobody"), "orphan")
    site.train(SMALL, "narrow")
    with pytest.raises(CheckpointError, match="another draft shape"):
        site.train(SMALL.but(continue_from="narrow", draft={"num_layers": 2}), "wide")


def test_the_best_weights_become_the_draft_where_the_spec_says_so(site: Site) -> None:
    spec = SMALL.but(keep="best", learning_rate=0.05, steps=40, validate_every=2)  # 20 samples, learnt by heart
    ref, counts = site.train(spec, "best")
    rows = [json.loads(line) for line in _metrics(site, ref)]
    losses = {row["step"]: row["loss"] for row in rows if row["split"] == "validation"}
    best = min(losses, key=losses.__getitem__)
    assert best != 40
    assert counts["held_out"]["step"] == best
    stopped, _ = site.train(spec.but(keep="last"), "last")
    assert site.checksums(ref)["model.safetensors"] != site.checksums(stopped)["model.safetensors"]


def _metrics(site: Site, ref: ArtifactRef) -> list[bytes]:
    return open_artifact(site.store, ref, site.placement.scratch).read_bytes("metrics.jsonl").splitlines()


class Terminating(Heard):
    """Sends SIGTERM to this very process when it hears of a step."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        if done == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_target_without_a_location_is_an_input_error(site: Site) -> None:
    with pytest.raises(TargetError, match="has no location on this machine"):
        site.train(SMALL, "nowhere", locations={})


def test_another_target_in_its_place_is_refused(site: Site, tmp_path: Path) -> None:
    digest = next(iter(site.placement.locations))
    config = json.loads((site.root / "target" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9}))
    with pytest.raises(TargetError, match=r"are \(9, 32, 264\), the cache's \(6, 32, 264\)"):
        site.train(SMALL, "other-target", locations={digest: str(tmp_path)})
