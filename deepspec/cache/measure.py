"""Count what a capture will hold, from the answers themselves, before it runs."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from deepspec.artifacts import Artifact
from deepspec.cache.capture import answer_files
from deepspec.cache.judged import no_sample
from deepspec.cache.measured import AnswerCounts
from deepspec.cache.spec import CacheOptions
from deepspec.chat.template import ChatTemplate
from deepspec.passes.samples import Item, padded, read_items, to_record
from deepspec.ranges import Range
from deepspec.target.layers import default_layers
from deepspec.target.load import Target
from deepspec.target_cache.codec import CODECS, TOKENS_ONLY, encode

ROWS = 2000
"""Rows that are counted, at most; of more, those at the beginning of evenly many files."""

FILES = 32
"""Files that they are taken from, at most."""

PILOT = 6
"""Samples that the target runs over to see how well its states compress."""

_PILOT_SPREAD = 0.02


def measure_answers(
    answers: Artifact, template: ChatTemplate, options: CacheOptions, target: Target | None
) -> AnswerCounts:
    """Return the counts of a capture over published answers; however many rows are bad, it only counts them.

    Args:
        answers: the artifact.
        template: of the target.
        options: of the cache.
        target: in memory, to see how well its states compress; None: that is not measured.

    Raises:
        SourceError: no answer can be trained on.
    """
    files = answer_files(answers)
    chosen = files[:: math.ceil(len(files) / FILES)]
    limit = math.ceil(ROWS / len(chosen))
    items: list[Item] = []
    counts = Counter[str]()
    examples: dict[str, list[str]] = {}
    cut = False
    for name in chosen:
        read = read_items([answers.path(name)], template, options, limit)
        items += read.items
        counts.update(read.counts)
        examples = {**read.examples, **examples}
        cut |= read.counts["rows"] == limit
    if not items:
        raise no_sample(counts, examples)
    total = int(answers.counts["input"]) if cut or chosen != files else counts["rows"]

    def summed(values: Sequence[int]) -> Range:
        return _total(values, counts["rows"], total)

    return AnswerCounts(
        rows=counts["rows"],
        samples=round(len(items) * total / counts["rows"]),
        tokens=summed([item.length for item in items]),
        supervised=summed([sum(item.sample.loss_mask) for item in items]),
        last_rows=summed([item.last_rows for item in items]),
        ratios={} if target is None else _ratios(items, options, target),
    )


def _total(values: Sequence[int], rows: int, total: int) -> Range:
    """Return the sum over all rows from values of some, with its 95 % interval; exact where those are all."""
    seen = np.concatenate([np.asarray(values, dtype=float), np.zeros(max(rows - len(values), 0))])
    spread = 0.0 if rows == total else 1.96 * float(seen.std()) * total / math.sqrt(rows)
    mid = float(seen.sum()) * total / rows
    return Range(low=mid - spread, mid=mid, high=mid + spread)


def _ratios(items: Sequence[Item], options: CacheOptions, target: Target) -> dict[str, Range]:
    """Return how many bytes the states of a few samples take with each codec, against raw bf16."""
    layers = options.layers or default_layers(target.num_layers)
    raw, coded = 0, dict.fromkeys(set(CODECS) - {TOKENS_ONLY}, 0)
    for item in items[:: math.ceil(len(items) / PILOT)]:
        hidden, last = target.capture(padded([item]), layers)
        record = to_record(item, hidden[0], last[0])
        states = record.hidden.view(-1, target.hidden_size)
        rows = torch.cat([states, record.last_hidden])
        raw += 2 * rows.numel()
        for codec in coded:
            coded[codec] += sum(len(piece) for piece in encode(CODECS[codec], [rows]))
    found = {codec: Range.around(size / raw, _PILOT_SPREAD) for codec, size in coded.items() if codec != "bf16"}
    return {**found, "bf16": Range.around(1.0)}
