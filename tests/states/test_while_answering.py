"""Answers and states from one pass over a small server that speaks as vLLM does."""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.artifacts import ArtifactRef, open_artifact, read_manifest
from deepspec.cache.verify import verify_cache
from deepspec.errors import EngineError, SpecError
from deepspec.gathering.kept_answers import FOLDER
from deepspec.messages.conversations import published_rows
from deepspec.passes.agree import states_difference
from deepspec.passes.live import open_cache
from deepspec.target_cache.cache import TargetCache
from tests.given.engines.bench import Bench
from tests.given.engines.one_pass import ALL, Line, prompts
from tests.given.engines.prompts import prompt
from tests.given.engines.states import Served, serving
from tests.given.engines.training import checksums, train
from tests.given.published.caches import opened
from tests.given.published.site import SMALL
from tests.given.targets.tiny import THINKING, write_target

PROOF = 3
"""Prompts by which an engine is proven before the first row."""
FEW = 4


class Passed:
    """One pass over the prompts, whose states every test finds as they came; and two passes at the same addresses."""

    def __init__(self, target: Path, folder: Path) -> None:
        self.one, self.two = Line(target, folder / "one"), Line(target, folder / "two")
        staging = folder / "staging"
        staging.mkdir()
        spec = self.one.cache_spec()
        with serving(Served(folder=staging, target=target, drift=1e-6)) as engine:  # rounding is no difference
            self.answers = self.one.answers(spec, engine.endpoint)
            self.read, self.again, self.salts = engine.answered, len(engine.asked) - PROOF, list(engine.salts)
            self._came = self.one.scratch / FOLDER
            shutil.copytree(self._came, folder / "came")
            self.left = [path.name for path in staging.iterdir()]
            self.apart = self.two.answers(self.two.cache_spec(while_answering=False), engine.endpoint)
            self.prefilled = self.two.cache(spec, self.apart, engine.endpoint)
            plain = self.one.cache_spec(while_answering=False)
            self.plain = self.one.cache(plain, self.answers, engine.endpoint)
            self.whole = self.opened(self.plain)
        self.ref = self.one.cache(spec, self.answers)  # no engine is there any more
        self.folder = folder

    def came(self) -> None:
        """Put back what came with the answers."""
        shutil.copytree(self.folder / "came", self._came, dirs_exist_ok=True)

    def opened(self, ref: ArtifactRef) -> TargetCache:
        return opened(ref, self.one.store, self.one.scratch)


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Passed]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("deepspec.regenerate.run.TICK_SECONDS", 0.05)
        yield Passed(write_target(tmp_path_factory.mktemp("target")), tmp_path_factory.mktemp("passed"))


@pytest.fixture
def bench(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("deepspec.regenerate.run.TICK_SECONDS", 0.05)
    return bench


def line(bench: Bench, rows: Any = None, target: Path | None = None) -> Line:
    return Line(target or bench.target, bench.folder / "line", rows or prompts(FEW))


def same_but_for_rounding(one: Any, other: Any, *, to: int | None = None) -> None:
    assert len(one) == len(other)
    for number in range(len(one)):
        first, second = one.record(number), other.record(number)
        assert first.sample_id == second.sample_id
        assert torch.equal(first.input_ids, second.input_ids)
        assert torch.equal(first.loss_mask, second.loss_mask)
        torch.testing.assert_close(first.hidden[:to], second.hidden[:to], rtol=0.01, atol=1e-3)
        torch.testing.assert_close(first.last_hidden[:to], second.last_hidden[:to], rtol=0.01, atol=1e-3)


def test_one_pass_gives_the_answers_and_the_cache_of_two(passed: Passed) -> None:
    answers, apart = passed.answers.manifest, passed.apart.manifest
    assert (answers.address, answers.content) == (apart.address, apart.content)
    assert passed.ref.address == passed.prefilled.address
    two = opened(passed.prefilled, passed.two.store, passed.two.scratch)
    same_but_for_rounding(passed.opened(passed.ref), two)


def test_nothing_is_read_twice_and_nothing_is_left(passed: Passed) -> None:
    assert passed.again == 0
    assert len(set(passed.salts)) == PROOF  # an engine that remembers would prove that it remembers
    assert passed.left == []
    assert f"states of {ALL} answers are kept for the cache" in passed.one.heard.lines
    assert f"states of {ALL} samples came with the answers, 0 were asked for" in passed.one.heard.lines
    assert f"states of 0 samples came with the answers, {ALL} were asked for" in passed.two.heard.lines


def test_a_last_token_is_a_label_and_everything_else_is_that_of_a_cache_of_its_own(passed: Passed) -> None:
    with_label = passed.opened(passed.ref)
    assert with_label.facts.last_is_label
    assert not passed.whole.facts.last_is_label
    same_but_for_rounding(with_label, passed.whole, to=-1)
    for number in range(ALL):
        record = with_label.record(number)
        assert record.loss_mask[-1]
        assert not record.hidden[-1].any()
        assert not record.last_hidden[-1].any()


def test_supervised_are_the_ids_that_the_engine_gave_behind_the_ids_that_it_read(passed: Passed) -> None:
    rows = {row["id"]: row for row in published_rows(passed.answers)}
    assert {reason for row in rows.values() for reason in row["finish_reasons"]} == {"stop", "length"}
    assert {len(row["generated"]) for row in rows.values()} == {1, 2}
    cache = passed.opened(passed.ref)
    for number in range(ALL):
        record = cache.record(number)
        given = list(chain.from_iterable(rows[record.sample_id]["token_ids"]))
        assert record.input_ids[record.loss_mask].tolist() == given
        assert record.input_ids[:-1].tolist() in passed.read  # of two turns one file, that of the last, holds both


def test_verification_and_the_gate_know_that_a_last_token_is_a_label(passed: Passed) -> None:
    artifact = open_artifact(passed.one.store, passed.ref, passed.one.scratch)
    found = verify_cache(artifact, passed.one.placement(), passed.one.heard)
    assert found.sound
    assert len(found.recomputed) == 4
    record, online = passed.opened(passed.ref).record(0), open_cache(artifact, passed.one.placement(), "online")
    facts, own = passed.opened(passed.ref).facts, online.record(0)
    assert states_difference(record, own, facts) < 0.02
    assert states_difference(own, own, facts) == float("inf")  # states where none can be
    assert states_difference(record, own, passed.whole.facts) > 0.05  # where it should be no label


def test_the_manifest_says_that_states_came_with_answers(passed: Passed) -> None:
    manifest = read_manifest(passed.one.store, passed.ref.kind, passed.ref.address)
    assert manifest is not None
    assert manifest.spec["while_answering"] is True
    assert manifest.counts["last_is_label"] is True
    assert not list(passed.one.scratch.rglob(f"{FOLDER}/*/*/*"))


def test_a_draft_that_is_trained_on_labels_is_that_which_is_trained_on_all_states(passed: Passed) -> None:
    """The states of both are one engine's, of the same tokens read at once: only those of last tokens differ."""
    drafts = []
    for line, ref in ((passed.two, passed.prefilled), (passed.one, passed.plain)):
        cache = open_artifact(line.store, ref, line.scratch)
        draft = train(line.store, line.scratch, cache, line.target, SMALL, line.heard, name="draft")
        drafts.append(checksums(draft, line.store, line.scratch))
    assert drafts[0] == drafts[1]


def test_an_objective_that_looks_behind_the_end_trains_nothing(passed: Passed) -> None:
    cache = open_artifact(passed.one.store, passed.ref, passed.one.scratch)
    spec = SMALL.but(objective=SMALL.objective.but(convention="speculators").model_dump())
    with pytest.raises(SpecError, match=r"none of any answer's last token, and .*convention=speculators, ask what"):
        train(passed.one.store, passed.one.scratch, cache, passed.one.target, spec, passed.one.heard, name="behind")


def test_a_sample_that_is_cut_needs_the_beginning_of_its_file_alone(passed: Passed) -> None:
    passed.came()
    cache = passed.opened(passed.one.cache(passed.one.cache_spec(max_length=60), passed.answers))
    longest = int(cache.index.lengths.argmax())
    assert cache.index.lengths[longest] == 60 < passed.whole.index.lengths.max()
    assert cache.record(longest).hidden[-2].any()
    assert not cache.record(longest).hidden[-1].any()


def test_a_kept_file_that_is_damaged_is_asked_for_again(passed: Passed, bench: Bench) -> None:
    passed.came()
    torn, flipped = passed.one.kept()[:2]
    torn.write_bytes(torn.read_bytes()[:200])
    flipped.write_bytes(flipped.read_bytes()[:-5] + b"x" + flipped.read_bytes()[-4:])
    with serving(Served(folder=bench.staging, target=passed.one.target)) as engine:
        passed.one.cache(passed.one.cache_spec(codec="fp8"), passed.answers, engine.endpoint)
    told = f"states of {ALL - 2} samples came with the answers, 2 were asked for, 2 kept files were damaged"
    assert told in passed.one.heard.lines


def test_samples_that_need_an_engine_where_there_is_none_are_one_line(passed: Passed) -> None:
    with pytest.raises(EngineError, match=r"there is no engine to ask; give --endpoint URL"):
        passed.one.cache(passed.one.cache_spec(part_bytes=10_000), passed.answers)


def test_a_conversation_whose_template_drops_a_turn_is_read_anew_but_for_its_last_sample(
    bench: Bench, tmp_path: Path
) -> None:
    target = write_target(tmp_path / "thinking", THINKING)
    one = line(bench, rows=[prompt("p0", "one", "two"), prompt("p1", "three")], target=target)
    spec = one.cache_spec()
    with serving(Served(folder=bench.staging, target=target)) as engine:
        answers = one.answers(spec, engine.endpoint)
        assert len(one.kept()) == 2
        cache = opened(one.cache(spec, answers, engine.endpoint), one.store, one.scratch)
    assert sorted(cache.index.sample_id(number) for number in range(3)) == ["p0:0", "p0:1", "p1"]
    assert "states of 2 samples came with the answers, 1 were asked for" in one.heard.lines


TOOLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + (c.function.arguments | tojson) + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALL = {"name": "weather", "arguments": '{"city": "Bern"}'}


def called(text: str) -> dict[str, Any]:
    if not text.startswith("<call>"):
        return {"content": text}
    return {"content": None, "tool_calls": [{"id": "c9", "type": "function", "function": CALL}]}


def test_a_turn_that_calls_a_tool_and_one_that_reads_its_result_are_one_file(bench: Bench, tmp_path: Path) -> None:
    target = write_target(tmp_path / "tools", TOOLS)
    recorded = [{"id": "c1", "type": "function", "function": CALL}]
    row = prompt("p0", "rain?", tools=[{"type": "function", "function": {"name": "weather", "parameters": {}}}])
    row["messages"] += [{"role": "tool", "tool_call_id": "c1", "content": "sun"}, row["messages"][1]]
    row["messages"][1] = {"role": "assistant", "content": "", "tool_calls": recorded}
    one = line(bench, rows=[row], target=target)

    def say(messages: list[dict[str, Any]]) -> str:
        return '<call>weather{"city": "Bern"}</call>' if messages[-1]["content"] == "rain?" else "dry"

    spec = one.cache_spec()
    with serving(Served(folder=bench.staging, target=target, say=say, calls=called)) as engine:
        answers = one.answers(spec, engine.endpoint, longest=64)
        record = opened(one.cache(spec, answers), one.store, one.scratch).record(0)
    (answered,) = published_rows(answers)
    assert answered["generated"] == [1, 3]
    assert record.input_ids[record.loss_mask].tolist() == list(chain.from_iterable(answered["token_ids"]))
    assert record.input_ids[:-1].tolist() == engine.answered[-1]


def test_an_engine_that_leaves_the_stop_token_out_has_not_read_the_last_word_and_is_asked_again(bench: Bench) -> None:
    one = line(bench)
    with serving(bench.served(tells_stop=False)) as engine:
        answers = one.answers(one.cache_spec(), engine.endpoint)
        one.cache(one.cache_spec(), answers, engine.endpoint)
    assert [row["id"] for row in published_rows(answers) if row["finish_reasons"][-1] == "length"] == ["p3"]
    assert f"states of 1 samples came with the answers, {FEW - 1} were asked for" in one.heard.lines


def test_what_does_not_fit_is_asked_for_again_and_said(bench: Bench) -> None:
    one = line(bench)
    spec = one.cache_spec(keep_states=60_000)
    with serving(bench.served()) as engine:
        answers = one.answers(spec, engine.endpoint)
        kept = len(one.kept())
        assert 0 < kept < FEW
        assert sum(path.stat().st_size for path in one.kept()) <= 60_000
        one.cache(spec, answers, engine.endpoint)
    told, again = f"states of {kept} answers are kept for the cache", FEW - kept
    assert f"{told}; of {again} they are asked for again: {again} without room" in one.heard.lines
    assert f"states of {kept} samples came with the answers, {again} were asked for" in one.heard.lines
    assert bench.left() == []


def test_answers_without_their_states_are_answers_all_the_same(bench: Bench) -> None:
    one = line(bench)
    with serving(bench.served(dies_at=16)) as engine:
        answers = one.answers(one.cache_spec(), engine.endpoint)
    kept = len(one.kept())
    assert answers.counts["success"] == FEW
    assert 0 < kept < FEW
    assert f"{FEW - kept} without a whole file" in one.heard.lines[-2]
    assert bench.left() == []


def test_states_that_nobody_wants_are_deleted_and_told(bench: Bench) -> None:
    one = line(bench)
    with serving(bench.served()) as engine:
        answers = one.answers(one.cache_spec(while_answering=False), engine.endpoint)
    assert answers.counts["success"] == FEW
    assert engine.files > FEW
    assert bench.left() == []
    (told,) = [line for line in one.heard.lines if "nobody takes them" in line]
    assert "they are deleted as they come; its answers are not proven" in told


def test_states_that_nobody_wants_and_that_lie_elsewhere_are_told(bench: Bench) -> None:
    one = line(bench)
    with serving(bench.served(lock="none")) as engine:
        one.answers(one.cache_spec(while_answering=False), engine.endpoint)
    (told,) = [line for line in one.heard.lines if "nobody takes them" in line]
    assert "which is not here" in told
    assert "its folder fills up; its answers are not proven" in told


def refused(bench: Bench, match: str, temperature: float = 1.0, **faults: Any) -> None:
    one = line(bench)
    with serving(bench.served(**faults)) as engine, pytest.raises(EngineError, match=match):
        one.answers(one.cache_spec(), engine.endpoint, temperature=temperature)
    assert one.kept() == []
    assert not list(one.store.list("answers"))
    assert bench.left() == [] or not engine.connector


def test_states_that_an_engine_makes_otherwise_while_it_answers_are_refused(bench: Bench) -> None:
    refused(bench, r"layer -1, as it makes it while it answers, is off by .* in two requests", drift=0.01)


def test_an_engine_that_gives_no_states_with_its_answers_is_refused(bench: Bench) -> None:
    refused(bench, r"answers and gives no states; start it with what `deepspec engine-args` prints", connector=False)


def test_layers_other_than_the_targets_are_refused_before_the_first_row(bench: Bench) -> None:
    refused(bench, r"is nearer to layer", shift=1)


def test_another_model_is_refused_before_the_first_row(bench: Bench) -> None:
    refused(bench, r"serves another model than the target", told={"model": "0" * 32})


def test_weights_that_change_under_a_run_end_it_and_what_was_answered_stays(bench: Bench) -> None:
    one = line(bench)
    with serving(bench.served()) as engine:
        engine.told_later = (16, {"model": "1" * 32})
        with pytest.raises(EngineError, match=r"its weights have changed since"):
            one.answers(one.cache_spec(), engine.endpoint)
    assert len(one.kept()) < FEW
    with serving(bench.served()) as engine:
        assert one.answers(one.cache_spec(), engine.endpoint).counts["success"] == FEW
    assert len(one.kept()) == FEW


@pytest.mark.parametrize(("drawn_at", "what"), [(0.0, "likelier"), (30.0, "unlikelier")])
def test_an_engine_that_draws_from_another_distribution_is_refused(bench: Bench, drawn_at: float, what: str) -> None:
    """Its states are right."""
    refused(
        bench, rf"does not draw answers from its own distribution .* {what} than chance explains", draws_at=drawn_at
    )


def test_a_greedy_engine_has_to_say_what_is_likeliest(bench: Bench) -> None:
    refused(bench, r"at temperature 0 with a token .* nats below the likeliest", temperature=0.0, draws_at=1.0)
