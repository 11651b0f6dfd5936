"""One capture worker: the target in memory, its forward passes, and the parts that they fill."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from deepspec.artifacts import Artifact
from deepspec.cache.background import Background
from deepspec.cache.judged import tally_rows
from deepspec.cache.leaving import Leaving
from deepspec.cache.spec import BAD_SHARE, CacheSpec
from deepspec.disk import writing
from deepspec.lines.bad_rows import BadRows
from deepspec.passes.samples import (
    Item,
    batches,
    cut_parts,
    padded,
    raw_bytes,
    read_items,
    shard_files,
)
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.target.layers import check_layers, default_layers
from deepspec.target.load import Target, load_fitting, load_placed
from deepspec.target.mask_token import mask_token_facts
from deepspec.target_cache.codec import TOKENS_ONLY
from deepspec.target_cache.part import Encoded, PartWriter, part_name
from deepspec.target_cache.sizes import BF16_BYTES

if TYPE_CHECKING:
    from deepspec.gathering.source import EngineStates

MAX_SHARDS = 500
"""A shard is a unit of work for an orchestrator, which likes hundreds, not thousands."""

_WAITING_PARTS = 2
"""Finished parts held in scratch while the store is slow."""


def answer_files(answers: Artifact) -> list[str]:
    """Return the names of the files that hold rows."""
    return [name for name in answers.names() if name.endswith(".jsonl.zst")]


def count_shards(answers: Artifact) -> int:
    """Return the number of shards: one for each file of answers, or for several where there are very many."""
    return min(len(answer_files(answers)), MAX_SHARDS)


class Capture:
    """One worker: the target in memory, and where its states go.

    Args:
        spec: what to capture.
        answers: over which text.
        out: where parts are committed.
        placement: device, threads, and where the target lies.
        report: who listens.
    """

    def __init__(self, spec: CacheSpec, answers: Artifact, out: Out, placement: Placement, report: Report) -> None:
        """Keep the arguments; the target is loaded when a part needs it."""
        self._spec, self._answers, self._out = spec, answers, out
        self._placement, self._report = placement, report
        self._files = answer_files(answers)
        self._bad = BadRows(spec.bad_share, BAD_SHARE)
        self._closing = ExitStack()
        self._engines: EngineStates | None = None
        if placement.threads is not None:
            torch.set_num_threads(placement.threads)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the engines, if any were asked."""
        if self._engines is not None and error is None and (told := self._engines.told()):
            self._report.log(told)
        self._closing.close()

    @cached_property
    def target(self) -> Target:
        """Return the target, loaded once.

        Raises:
            TargetError: it is not where the placement says, or is another one.
        """
        self._report.log("loading the target")
        load = load_placed if self._spec.states == "transformers" else load_fitting
        target = load(self._spec.target, self._placement, self._spec.dtype)
        if target.device.type == "cuda":  # else this thread's is the first card: there, too, torch would take memory
            torch.cuda.set_device(target.device)
        if target.shape.general and not target.embed_weight.is_meta:
            self._report.log(f"{target.shape.top_model_type}: the general reading is proven on this target")
        for line in target.shape.told:
            self._report.log(line)
        return target

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Return the captured layers."""
        layers = self._spec.layers or default_layers(self.target.num_layers)
        check_layers(layers, self.target.num_layers, last=True)  # which drafts read it, the plan has checked
        return layers

    def is_done(self, shard: int) -> bool:
        """Return whether every part of a shard is committed."""
        first = self._out.part(shard, 0)
        return first is not None and all(self._out.part(shard, part) for part in range(first.extra["parts"]))

    def shard(self, shard: int, alive: Callable[[], None] = lambda: None) -> None:
        """Capture the parts of a shard that are not committed yet.

        Args:
            shard: its number.
            alive: called after each part.

        Raises:
            BadRowsError: of the rows that this worker has read so far, too many cannot be trained on.
        """
        first = self._out.part(shard, 0)
        if first is not None:
            self._judge(first.counts["rows"], first.extra["bad_rows"])
            if self.is_done(shard):
                return
        total = count_shards(self._answers)
        paths = [self._answers.path(name) for name in shard_files(self._files, shard, total)]
        read = read_items(paths, self.target.template, self._spec)
        if first is None:
            self._judge(read.counts, read.examples)
        items = read.items
        if self._spec.states == "vllm" and items and self._engines is None:
            self._engines = self._closing.enter_context(self._asked(items))
        parts = cut_parts(items, len(self.layers), self.target.hidden_size, self._spec.part_bytes) or [[]]
        done = 0
        with (
            Background(_WAITING_PARTS) as upload,
            self._leaving() as leaving,
            Background(self._depth(leaving)) as encode,
        ):
            for number, part in enumerate(parts):
                if self._out.part(shard, number) is None:
                    job = _PartJob(self, shard, number, part)
                    extra = {"parts": len(parts), "facts": self.facts, "bad_rows": read.examples if number == 0 else {}}
                    self._capture(job, leaving, encode, done, len(items))
                    encode.run(job.close)
                    encode.run(upload.run, job.commit, read.counts if number == 0 else Counter(), extra)
                    encode.run(upload.run, alive)
                done += len(part)
                self._progress(encode, done, len(items), f"shard {shard + 1} of {total}")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the target and the form of the cache."""
        target = self.target
        return {
            "target": self._spec.target.model_dump(),
            "layers": list(self.layers),
            "num_layers": target.num_layers,
            "hidden_size": target.hidden_size,
            "vocab_size": target.vocab_size,
            **mask_token_facts(target.tokenizer, target.vocab_size),
            "dtype": str(target.dtype).removeprefix("torch."),
            "quantization": target.quantization,
            **({"embedding_scale": target.reading.embedding_scale} if target.shape.general else {}),
            "codec": self._spec.codec,
            "stop_ids": sorted(target.stop_ids),
            **({"engine": self._engine_told()} if self._spec.states != "transformers" else {}),
            **({"last_is_label": True} if self._spec.while_answering else {}),
        }

    def _judge(self, rows: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> None:
        tally_rows(self._bad, rows, examples)
        self._bad.check_so_far()

    def _leaving(self) -> Leaving:
        device = torch.device("cpu") if self._spec.codec == TOKENS_ONLY else self.target.device
        return Leaving(self._spec.codec, self.layers, device)

    def _asked(self, items: Sequence[Item]) -> "EngineStates":
        """Return engines that are proven by some of these samples once they are entered."""
        from deepspec.gathering.asked import engine_states  # loads the client of engines, which takes a second

        engines = engine_states(self._spec, self.target, self.layers, items, self._placement, self._report)
        if self._spec.while_answering:
            engines.look_first(self._answers.manifest.address)
        return engines

    def _engine_told(self) -> dict[str, Any]:
        quantization = self._spec.engine_quantization
        return {"name": self._spec.states, "version": self._spec.engine_version, "quantization": quantization}

    def _depth(self, leaving: Leaving) -> int:
        if self._engines is not None:
            return self._engines.depth
        return leaving.depth(self._spec.batch_tokens * (len(self.layers) + 1) * self.target.hidden_size * BF16_BYTES)

    def _capture(self, job: "_PartJob", leaving: Leaving, encode: Background, done: int, total: int) -> None:
        for batch in batches(job.items, self._spec.batch_tokens):
            if self._engines is None:
                encode.run(job.add, batch, leaving.take(batch, *self._states(batch)))
            else:
                self._ask(self._engines, job, batch, leaving, encode)
            done += len(batch)
            self._progress(encode, done, total)

    def _progress(self, encode: Background, done: int, total: int, note: str = "") -> None:
        """Tell how far the forward passes are; where engines are asked far ahead, how far what they gave is written."""
        if self._engines is None:
            self._report.progress(done, total, "samples", note)
        else:
            encode.run(self._report.progress, done, total, "samples", note)

    def _ask(
        self, engines: "EngineStates", job: "_PartJob", batch: Sequence[Item], leaving: Leaving, encode: Background
    ) -> None:
        """Ask for samples ahead; the shortest of a shard's first part is held against the target."""
        for item in batch:
            proven = job.number == 0 and item is job.shortest
            encode.run(job.add, [item], [engines.take(item, leaving.encoded, against_target=proven)])
            encode.run(engines.written, item)

    def _states(self, batch: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Return what the target computes; for a cache of tokens only, zeros that take no memory."""
        ids = padded(batch)
        if self._spec.codec == TOKENS_ONLY:
            width = self.target.hidden_size
            return torch.zeros(1).expand(*ids.shape, len(self.layers) * width), torch.zeros(1).expand(*ids.shape, width)
        return self.target.capture(ids, self.layers)


class _PartJob:
    """One part on its way to the store; its methods run behind the forward pass."""

    def __init__(self, capture: Capture, shard: int, part: int, items: Sequence[Item]) -> None:
        self.items, self.number = items, part
        self.shortest = min(items, key=lambda item: item.length, default=None)
        self._capture, self._shard, self._part = capture, shard, part
        self._name = part_name(shard, part)
        self._path = capture._out.scratch / f"{capture._out.attempt}-{self._name}"
        with writing(self._path):
            self._writer = PartWriter(self._path, shard, part, capture._spec.codec)

    def add(self, batch: Sequence[Item], encoded: Sequence[Future[Encoded]]) -> None:
        with writing(self._path):
            for item, sample in zip(batch, encoded, strict=True):
                self._writer.append(sample.result(), item.split)

    def close(self) -> None:
        with writing(self._path):
            self._writer.close()

    def commit(self, rows: Mapping[str, int], extra: Mapping[str, Any]) -> None:
        layers, width = len(self._capture.layers), self._capture.target.hidden_size
        counts = {
            "rows": dict(rows),
            "raw_bytes": sum(raw_bytes(item, layers, width) for item in self.items),
            "stored_bytes": self._path.stat().st_size if self.items else 0,
        }
        files = {self._name: self._path} if self.items else {}
        kinds = {item.sample.sample_id: item.kind for item in self.items if item.split != "train" and item.kind}
        told = {**extra, "columns": self._writer.columns, "kinds": kinds}
        self._capture._out.commit_part(self._shard, self._part, files, counts, told)
        if self._capture._engines is not None:
            self._capture._engines.committed(self.items)
