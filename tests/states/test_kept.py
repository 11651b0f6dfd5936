"""A folder of kept states: whole files or none, never more than its limit, and nothing that is damaged."""

from pathlib import Path

import torch

from deepspec.gathering.kept import Kept
from deepspec.records.batch import Record


def record(name: str, tokens: int = 8) -> Record:
    return Record(
        sample_id=name,
        input_ids=torch.arange(tokens),
        loss_mask=torch.ones(tokens, dtype=torch.bool),
        hidden=torch.rand(tokens, 64, generator=torch.Generator().manual_seed(tokens)).bfloat16(),
        last_hidden=torch.ones(tokens, 32, dtype=torch.bfloat16),
    )


def got(kept: Kept, one: Record) -> Record | None:
    return kept.get(one.sample_id, one.input_ids, one.loss_mask)


def test_a_sample_that_is_kept_is_there_for_another_process_too(tmp_path: Path) -> None:
    one = record("a")
    assert Kept(tmp_path / "kept", 10_000).put(one)
    other = Kept(tmp_path / "kept", 10_000)
    found = got(other, one)
    assert other.has("a")
    assert found is not None
    assert torch.equal(found.hidden, one.hidden)
    assert torch.equal(found.last_hidden, one.last_hidden)
    assert (other.read, other.damaged) == (1, 0)


def test_what_came_first_stays_and_the_limit_is_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 2 * (1024 + 8 * 96 * 2) + 100)
    assert [kept.put(record(name)) for name in "abc"] == [True, True, False]
    assert [kept.has(name) for name in "abc"] == [True, True, False]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * (1024 + 8 * 96 * 2)
    lowered = Kept(tmp_path, 2600)
    assert sum(lowered.has(name) for name in "ab") == 1


def test_none_is_kept_without_a_limit(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept", 0)
    assert not kept.put(record("a"))
    assert not (tmp_path / "kept").exists()


def test_a_damaged_file_and_one_of_other_tokens_are_deleted_and_counted(tmp_path: Path) -> None:
    kept, one = Kept(tmp_path, 10_000), record("a")
    kept.put(one)
    path = next(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert got(kept, one) is None
    assert not kept.has("a")
    kept.put(one)
    assert kept.get("a", one.input_ids + 1, one.loss_mask) is None
    assert kept.damaged == 2


def test_what_a_dead_process_left_unfinished_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors.999999999.unfinished").write_bytes(b"half")
    Kept(tmp_path, 10_000)
    assert list(tmp_path.iterdir()) == []
