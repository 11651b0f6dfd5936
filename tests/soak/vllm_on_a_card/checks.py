"""Our connector in vLLM's own base class, on a card that works late; run by vLLM's interpreter, with the
connector's folder and the root on its path. Prints a JSON object: what became of each check, "" where it holds.

Steps are those of `vllm/v1/worker/gpu/kv_connector.py`: metadata bound, forward pass, `wait_for_save`, `get_finished`.
"""

import fcntl
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from deepspec_states import StatesConnector, checksum  # type: ignore[import-not-found]
from safetensors import safe_open
from torch import Tensor
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    HiddenStateCacheSpec,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.request import RequestStatus

from tests.soak.vllm_on_a_card import card

LAYERS, WIDTH, BLOCKS = 3, 8, 64


class Engine:
    """A scheduler's connector, and a worker's with a cache of states."""

    def __init__(
        self, folder: Path, *, on_card: bool = True, block: int = 16, rank: int = 0, alone: bool = True
    ) -> None:
        spec = HiddenStateCacheSpec(block_size=block, num_kv_heads=LAYERS, head_size=WIDTH, dtype=torch.bfloat16)
        other = FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=WIDTH, dtype=torch.bfloat16)
        uniform = UniformTypeKVCacheSpecs(block_size=block, kv_cache_specs={"layer": other, "states": spec})
        groups = [uniform] if alone else [other, spec]
        told = [SimpleNamespace(kv_cache_spec=group) for group in groups]
        model = folder / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text("{}")
        config = SimpleNamespace(
            kv_transfer_config=KVTransferConfig(
                kv_connector="StatesConnector", kv_connector_module_path="deepspec_states", kv_role="kv_producer",
                kv_connector_extra_config={"shared_storage_path": str(folder / "staging")},
            ),
            cache_config=SimpleNamespace(block_size=4096),  # another: that of the group is the one
            model_config=SimpleNamespace(dtype=torch.bfloat16, quantization=None, model=str(model), revision=None),
            speculative_config=SimpleNamespace(
                draft_model_config=SimpleNamespace(
                    hf_config=SimpleNamespace(eagle_aux_hidden_state_layer_ids=list(range(LAYERS)))
                )
            ),
        )  # fmt: skip
        made = [
            StatesConnector(config, role, SimpleNamespace(kv_cache_groups=told))
            for role in (KVConnectorRole.SCHEDULER, KVConnectorRole.WORKER)
        ]
        self.scheduler, self.worker = made
        physical = torch.randn(BLOCKS, block, LAYERS, WIDTH).to(torch.bfloat16)
        self.cache = physical.permute(0, 2, 1, 3)  # as LBNHC lays it out
        self.block, self.folder, self.alone = block, folder / "staging", alone
        self.worker._kv_cache = card.there(self.cache[:]) if on_card else self.cache
        self.worker._is_tp_rank_zero = rank == 0

    def step(self, *begun: str, over: Sequence[str] = ()) -> set[str]:
        """Schedule and run a step; return the requests whose blocks may go."""
        new = [SimpleNamespace(req_id=name, sampling_params=None) for name in begun]
        told = self.scheduler.build_connector_meta(SimpleNamespace(scheduled_new_reqs=new))
        self.worker.bind_connector_metadata(told)
        self.worker.wait_for_save()
        sent, _ = self.worker.get_finished(set(over))
        self.worker.clear_connector_metadata()
        return sent or set()

    def sent(self) -> set[str]:
        """Return the requests whose blocks may go, once there are some; the threads that write have the card work."""
        for _ in range(500):
            if found := self.step():
                return found
            time.sleep(0.01)
        return set()

    def end(self, name: str, ids: list[int], blocks: list[int], status: Any = None, answered: int = 0) -> bool:
        """End a request; return whether its blocks have to wait."""
        request = SimpleNamespace(
            request_id=name, prompt_token_ids=ids[: len(ids) - answered], all_token_ids=ids,
            kv_transfer_params={"include_output_tokens": True} if answered else None,
            status=status or RequestStatus.FINISHED_LENGTH_CAPPED,
        )  # fmt: skip
        given = (blocks,) if self.alone else ([1, 2], blocks)
        waits, told = self.scheduler.request_finished_all_groups(request, given)
        assert (told is not None) == waits
        return bool(waits)

    def states(self, blocks: Sequence[int], count: int) -> Tensor:
        """Return what the cache holds of some tokens."""
        rows = [self.cache[blocks[n // self.block], :, n % self.block] for n in range(count)]
        return torch.stack(rows).clone() if rows else torch.zeros(0, LAYERS, WIDTH).to(torch.bfloat16)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def is_locked(self, name: str) -> bool:
        with self.path(name).with_name(f"{name}.safetensors.lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def written(self) -> None:
        """Wait for the threads that write."""
        self.worker._executor.shutdown()

    def holds(self, name: str, ids: list[int], states: Tensor) -> None:
        with safe_open(self.path(name), "pt") as file:
            found = {key: file.get_tensor(key) for key in ("hidden_states", "token_ids")}
            assert file.metadata()["crc32"] == str(checksum(found))
        assert found["token_ids"].tolist() == ids
        assert torch.equal(found["hidden_states"], states)


@contextmanager
def engine(**options: Any) -> Iterator[Engine]:
    on_card = options.get("on_card", True)
    with TemporaryDirectory() as place, card.card() if on_card else nullcontext():
        if not on_card:
            card.GO.set()
        yield Engine(Path(place), **options)


def check_blocks_wait_for_the_copy_and_the_file_for_both() -> None:
    with engine() as it:
        ids, blocks = list(range(40)), [7, 3, 9]
        it.step("a")
        late = torch.randn(LAYERS, WIDTH).to(torch.bfloat16)
        card.MAIN.work.append(lambda: it.cache[3, :, 4].copy_(late))  # of the last pass: it has not run yet
        assert it.end("a", ids, blocks)
        assert it.step(over=["a"]) == set() == it.step()
        assert it.is_locked("a")
        assert not it.path("a").exists()
        card.GO.set()
        assert it.sent() == {"a"}
        wanted = it.states(blocks, 40)
        assert torch.equal(wanted[20], late)
        it.cache.fill_(5)  # the blocks are another's now
        it.written()
        it.holds("a", ids, wanted)
        assert not it.is_locked("a")


def check_requests_of_one_step_in_blocks_of_any_size_and_place() -> None:
    for block in (1, 16, 80):
        for on_card in (True, False):
            for alone in (True, False):
                with engine(block=block, on_card=on_card, alone=alone) as it:
                    free = torch.randperm(BLOCKS).tolist()
                    asked = {f"r{n}": (list(range(n, n + length)), length) for n, length in enumerate((1, 16, 23))}
                    places = {name: [free.pop() for _ in range(-(-n // block))] for name, (_, n) in asked.items()}
                    it.step(*asked)
                    for name, (ids, _) in asked.items():
                        it.end(name, ids, places[name])
                    card.GO.set()
                    it.step(over=list(asked))
                    it.written()
                    for name, (ids, count) in asked.items():
                        it.holds(name, ids, it.states(places[name], count))


def check_of_several_ranks_one_writes() -> None:
    with engine(rank=1) as it:
        it.step("a")
        assert it.end("a", [1, 2], [4])
        assert it.step(over=["a"]) == set() == it.step()
        it.written()
        assert list(it.folder.iterdir()) == []
        assert it.scheduler.get_finished_count() == 1
        assert not it.worker._accumulated_finished_req_ids


def check_a_request_that_was_preempted_is_read_where_it_lies_at_last() -> None:
    with engine() as it:
        it.step("a")
        held = dict(it.worker._lock_fds)
        it.step("a")  # model runner 2 hears of it as of a new one
        assert held == it.worker._lock_fds
        ids = list(range(20))
        it.end("a", [*ids, 99], [11, 12], answered=5)
        card.GO.set()
        it.step(over=["a"])
        it.written()
        it.holds("a", ids, it.states([11, 12], 20))


def check_of_a_request_that_is_given_up_nothing_is_written() -> None:
    for on_card in (True, False):
        for blocks in ([4], []):
            with engine(on_card=on_card) as it:
                it.step("a", "b")
                assert not it.end("a", list(range(30)), blocks, RequestStatus.FINISHED_ABORTED)
                assert not it.end("never begun", [1], [], RequestStatus.FINISHED_ABORTED)
                assert it.end("b", [1, 2], [5])
                card.GO.set()
                it.step(over=["a", "b", "never begun"])
                it.written()
                assert not it.is_locked("a")
                assert not it.path("a").exists()
                it.holds("b", [1, 2], it.states([5], 2))
                assert not it.scheduler._request_filenames
                assert not it.worker._lock_fds


def check_a_file_that_cannot_be_written_is_told_and_keeps_no_block() -> None:
    with engine() as it:
        it.step("a")
        it.end("a", [1, 2], [5])
        it.path("a").with_name("a.safetensors.tmp").mkdir()
        card.GO.set()
        assert (it.step(over=["a"]) or it.sent()) == {"a"}
        it.written()
        assert not it.is_locked("a")
        assert it.path("a").with_name("a.safetensors.error").read_text()


def main() -> int:
    found = {}
    for name, check in sorted(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                found[name] = ""
            except Exception:  # noqa: BLE001 - whatever it is, it is told
                found[name] = traceback.format_exc()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
