"""Reading a cache: orders, resuming, damage, and object storage through a bounded folder."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.errors import BudgetError, CorruptArtifactError
from deepspec.records.batch import collate
from deepspec.records.order import epoch_order
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.fetch import BoundedFolder
from deepspec.target_cache.index import INDEX
from tests.given.published.caches import build, held, opened, publish_answers, rows, spec_for


def made(target: Path, store: Store, scratch: Path, **options: Any) -> ArtifactRef:
    answers = publish_answers(store, scratch, [rows(12), rows(12, seed=1)])
    return build(spec_for(target, **{"part_bytes": 60_000, **options}), target, answers, store, scratch)


def payload(store: Store, ref: ArtifactRef, name: str) -> Path:
    manifest = open_artifact(store, ref, Path("unused")).manifest
    return Path(store.root, ref.prefix, manifest.files[name].key)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def same(one: Any, other: Any) -> bool:
    return one.sample_id == other.sample_id and all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("input_ids", "loss_mask", "hidden", "last_hidden")
    )


# --- tokens alone


def test_tokens_are_those_of_the_record_and_no_state_is_read(target: Path, store: Store, tmp_path: Path) -> None:
    ref = made(target, store, tmp_path / "s")
    cache = opened(ref, store, tmp_path / "s")
    wanted = {number: cache.record(number) for number in range(len(cache))}
    path = payload(store, ref, cache.index.part_of(0))
    flip(path, int(cache.index.row(0)["offset"]))  # a state of sample 0
    again = opened(ref, store, tmp_path / "s2")
    for number, record in wanted.items():
        input_ids, loss_mask = again.tokens(number)
        assert torch.equal(input_ids, record.input_ids)
        assert torch.equal(loss_mask, record.loss_mask)
    with pytest.raises(CorruptArtifactError, match="does not match its checksum"):
        again.record(0)


# --- order


def test_order_is_a_permutation_that_another_epoch_or_seed_changes() -> None:
    samples, parts = np.arange(1000), np.repeat(np.arange(20), 50)
    orders = [epoch_order(samples, parts, seed=s, epoch=e, window=4).tolist() for s, e in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] == epoch_order(samples, parts, seed=0, epoch=0, window=4).tolist()


def test_order_is_frozen() -> None:
    """Runs that were interrupted depend on it: it may not change with a library."""
    found = epoch_order(np.arange(8), np.repeat(np.arange(4), 2), seed=1, epoch=2, window=2)
    assert found.tolist() == [6, 2, 7, 3, 4, 0, 1, 5]


@pytest.mark.parametrize("window", [1, 3])
def test_no_more_parts_than_the_window_are_open_at_once(window: int) -> None:
    parts = np.repeat(np.arange(10), 30)
    order = epoch_order(np.arange(300), parts, seed=3, epoch=0, window=window)
    for start in range(0, 300, 30 * window):
        assert len(set(parts[order[start : start + 30 * window]])) <= window
    assert np.abs(np.diff(order[: 30 * window])).max() > 1  # shuffled within


def test_splits_share_no_sample(target: Path, store: Store, tmp_path: Path) -> None:
    cache = opened(made(target, store, tmp_path), store, tmp_path)
    train, held_out = set(cache.numbers("train")), set(cache.numbers("validation"))
    assert train | held_out == set(range(len(cache)))
    assert not train & held_out
    assert len(cache.numbers("test")) == 0


def test_a_stream_goes_on_from_any_sample(target: Path, store: Store, tmp_path: Path) -> None:
    ref = made(target, store, tmp_path)
    order = opened(ref, store, tmp_path).order("train", seed=1, epoch=2, window=2)
    whole = [record.sample_id for record in opened(ref, store, tmp_path).stream(order)]
    rest = [record.sample_id for record in opened(ref, store, tmp_path).stream(order[7:])]
    assert whole[7:] == rest


def test_torchs_loader_reads_it_from_any_place_in_its_order(target: Path, store: Store, tmp_path: Path) -> None:
    cache = opened(made(target, store, tmp_path), store, tmp_path)
    order = cache.order("train", seed=1, epoch=2, window=2)
    loader = DataLoader(cache, batch_size=3, sampler=order[7:], collate_fn=collate)
    batches = list(loader)
    assert [name for batch in batches for name in batch.sample_ids] == [cache.index.sample_id(n) for n in order[7:]]
    wanted = collate([cache.record(int(number)) for number in order[7:10]])
    assert torch.equal(batches[0].hidden, wanted.hidden)
    assert torch.equal(batches[0].last_hidden, wanted.last_hidden)


def test_raw_states_are_views_of_the_mapped_file(target: Path, store: Store, tmp_path: Path) -> None:
    cache = opened(made(target, store, tmp_path, codec="bf16"), store, tmp_path)
    first, again = cache.record(0), cache.record(0)
    assert first.hidden.data_ptr() == again.hidden.data_ptr()


# --- damage


def test_a_flipped_byte_names_part_and_sample(target: Path, store: Store, tmp_path: Path) -> None:
    ref = made(target, store, tmp_path)
    row = opened(ref, store, tmp_path).index.row(5)
    name = opened(ref, store, tmp_path).index.part_of(5)
    flip(payload(store, ref, name), row["offset"] + row["bytes"] // 2)
    cache = opened(ref, store, tmp_path)
    with pytest.raises(CorruptArtifactError, match=rf"{name}: sample {row['sample_id']} does not match"):
        cache.record(5)
    cache.record(4)


@pytest.mark.parametrize("field", ["_ids_at", "_masks_at"])
def test_a_flipped_token_or_mask_is_found(target: Path, store: Store, tmp_path: Path, field: str) -> None:
    ref = made(target, store, tmp_path)
    cache = opened(ref, store, tmp_path)
    name = cache.index.part_of(0)
    flip(payload(store, ref, name), getattr(cache._parts.get(name), field))
    with pytest.raises(CorruptArtifactError, match="does not match its checksum"):
        opened(ref, store, tmp_path).record(0)


def test_a_quarantined_sample_is_listed_and_supervises_nothing(target: Path, store: Store, tmp_path: Path) -> None:
    ref = made(target, store, tmp_path)
    index = opened(ref, store, tmp_path).index
    flip(payload(store, ref, index.part_of(3)), index.row(3)["offset"])
    cache = opened(ref, store, tmp_path, on_corrupt="quarantine")
    before, damaged, after = cache.stream([2, 3, 4])
    assert [record.sample_id for record in (before, damaged, after)] == [index.sample_id(n) for n in (2, 3, 4)]
    assert len(damaged.input_ids) == index.lengths[3]
    assert not any(bool(values.any()) for values in (damaged.loss_mask, damaged.hidden, damaged.last_hidden))
    assert before.loss_mask.any()
    assert after.loss_mask.any()
    assert list(cache.quarantined) == [index.sample_id(3)]
    assert "does not match its checksum" in cache.quarantined[index.sample_id(3)]


def test_a_truncated_part_is_refused(target: Path, store: Store, tmp_path: Path) -> None:
    ref = made(target, store, tmp_path)
    path = payload(store, ref, opened(ref, store, tmp_path).index.part_of(0))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match=r"bytes, its manifest says .*deepspec cache verify --repair"):
        opened(ref, store, tmp_path).record(0)


def test_a_deleted_part_is_named(target: Path, store: Store, tmp_path: Path) -> None:
    ref = made(target, store, tmp_path)
    payload(store, ref, opened(ref, store, tmp_path).index.part_of(0)).unlink()
    with pytest.raises(CorruptArtifactError, match=r"safetensors is gone; .*cache verify --repair"):
        opened(ref, store, tmp_path).record(0)


def test_a_flipped_byte_in_the_index_is_found(target: Path, store: Store, tmp_path: Path) -> None:
    ref = made(target, store, tmp_path)
    flip(payload(store, ref, INDEX), 100)
    with pytest.raises(CorruptArtifactError, match="has checksum"):
        opened(ref, store, tmp_path)


# --- object storage


def test_a_cache_on_s3_has_the_same_content_and_records(target: Path, store: Store, s3: Store, tmp_path: Path) -> None:
    local, remote = made(target, store, tmp_path / "l"), made(target, s3, tmp_path / "r")
    assert local.content == remote.content
    here, there = opened(local, store, tmp_path / "l"), opened(remote, s3, tmp_path / "r")
    order = there.order("train", seed=0, epoch=0, window=2)
    assert all(same(one, here.record(n)) for n, one in zip(order, there.stream(order), strict=True))


def test_the_folder_of_fetched_parts_keeps_its_limit(target: Path, s3: Store, tmp_path: Path) -> None:
    ref = made(target, s3, tmp_path)
    sizes = [e.size for n, e in open_artifact(s3, ref, tmp_path).manifest.files.items() if n != INDEX]
    limit = max(sizes) * 2
    assert sum(sizes) > limit
    folder = tmp_path / "reader" / "fetched" / "parts"
    folder.mkdir(parents=True)
    (folder / "left-by-a-crash.12ab").write_bytes(bytes(limit))
    cache = opened(ref, s3, tmp_path / "reader", limit=limit)
    for _ in cache.stream(cache.order("train", seed=0, epoch=0, window=1)):
        assert held(folder) <= limit


def test_two_readers_share_a_folder_and_its_limit(target: Path, s3: Store, tmp_path: Path) -> None:
    """Two instances lock each other out as two processes do: the locks belong to open files."""
    ref = made(target, s3, tmp_path)
    limit = 2 * max(e.size for n, e in open_artifact(s3, ref, tmp_path).manifest.files.items() if n != INDEX)
    folder = tmp_path / "reader" / "fetched" / "parts"
    found: dict[int, list[str]] = {}

    def read(seed: int) -> None:
        cache = opened(ref, s3, tmp_path / "reader", limit=limit)
        order = cache.order("train", seed=seed, epoch=0, window=1)
        found[seed] = sorted(record.sample_id for record in cache.stream(order))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in (1, 2)]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        assert not folder.exists() or held(folder) <= limit
    assert len(found[1]) == 20
    assert found[1] == found[2]


def test_a_claim_whose_process_died_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / "part.coming").write_text("900")
    BoundedFolder(tmp_path, 1000).file("part", 500, lambda path: path.write_bytes(bytes(500)))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "part"]


def test_a_limit_below_one_part_is_an_error(target: Path, s3: Store, tmp_path: Path) -> None:
    ref = made(target, s3, tmp_path)
    with pytest.raises(BudgetError, match=r"does not fit .* limited to 1000; raise it"):
        opened(ref, s3, tmp_path / "reader", limit=1000).record(0)


def test_a_part_gone_from_s3_is_an_error(target: Path, s3: Store, tmp_path: Path) -> None:
    ref = made(target, s3, tmp_path)
    cache = TargetCache(open_artifact(s3, ref, tmp_path), tmp_path / "reader")
    entry = open_artifact(s3, ref, tmp_path).manifest.files[cache.index.part_of(0)]
    s3.delete(f"{ref.prefix}/{entry.key}")
    with pytest.raises(CorruptArtifactError, match="is gone"):
        list(cache.stream([0, 1]))
