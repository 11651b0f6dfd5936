"""The bundled prompts are what their generator writes, and nothing held out is trained on."""

from pathlib import Path

from deepspec.lines.rows import read_rows
from deepspec.messages.conversations import parse_conversation, user_texts
from deepspec.prepare.contamination import BenchmarkPrompts, read_prompts
from deepspec.prepare.demo import BENCHMARKS, PROMPTS
from deepspec.prepare.demo.write import HELD_OUT, KINDS, TRAINING, write


def test_the_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", tmp_path / "benchmarks")
    assert (tmp_path / "prompts.jsonl").read_bytes() == PROMPTS.read_bytes()
    for path in BENCHMARKS.glob("*.jsonl"):
        assert (tmp_path / "benchmarks" / path.name).read_bytes() == path.read_bytes()


def test_every_kind_is_there_and_no_prompt_twice() -> None:
    rows = [row for _, row in read_rows(PROMPTS)]
    kinds = [row["source"] for row in rows]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, TRAINING)
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert sorted(path.stem for path in BENCHMARKS.glob("*.jsonl")) == sorted(KINDS)
    assert len(list(read_prompts(BENCHMARKS.glob("*.jsonl")))) == HELD_OUT * len(KINDS)


def test_nothing_held_out_is_trained_on() -> None:
    held_out = list(read_prompts(BENCHMARKS.glob("*.jsonl")))
    training = [user_texts(parse_conversation(row)) for _, row in read_rows(PROMPTS)]
    assert not set(held_out) & {text for texts in training for text in texts}
    index = BenchmarkPrompts(held_out, run=8, overlap=0.5)
    assert not [texts for texts in training if index.are_in(texts)]
