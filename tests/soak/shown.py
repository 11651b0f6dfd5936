"""Print what a store holds: `python -m tests.soak.shown STORE TARGET` its caches, `… STORE prompts|answers` its rows.

One line an artifact, its counts; then one line a row, or one a sample of a cache: its text, with the supervised tokens
between « and ».
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from deepspec.artifacts import Artifact, open_artifact
from deepspec.catalog import catalog, find
from deepspec.lines.rows import Row
from deepspec.messages.conversations import published_rows
from deepspec.records.batch import Record
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache

ROWS = ("prompts", "answers")
MOST = 12
"""Samples of a cache that are shown."""


def marked(record: Record, tokenizer: Any) -> str:
    """Return the text of a sample; a mark stands wherever supervision begins or ends."""
    parts, on = [], False
    for token, supervised in zip(record.input_ids.tolist(), record.loss_mask.tolist(), strict=True):
        if bool(supervised) != on:
            on = not on
            parts.append("«" if on else "»")
        parts.append(tokenizer.decode([token]))
    return "".join(parts)


def said(row: Row) -> str:
    """Return who speaks in a row, how it ended, its last question, what was answered, and its error."""
    *before, last = row["messages"]
    roles = "+".join(message["role"] for message in row["messages"])
    asked = repr(before[-1]["content"][:50]) if before else ""
    calls = f" {json.dumps(last['tool_calls'])}" if last.get("tool_calls") else ""
    ended = f"{row['split']} {row.get('status')} {row.get('finish_reasons')}"
    return f"{roles} {ended} {asked} -> {last.get('content')!r}{calls}  {row.get('error', '')}"


def artifacts(store: Store, kind: str) -> Iterator[Artifact]:
    """Yield all published artifacts of a kind, and print their counts before them."""
    for entry in catalog(store):
        if entry.kind != kind or entry.manifest is None:
            continue
        print(kind, entry.address[:12], json.dumps(entry.manifest.counts))
        with TemporaryDirectory() as folder:
            yield open_artifact(store, find(store, f"{kind}/{entry.address}"), Path(folder))


def main(root: str, what: str) -> None:
    """Print all artifacts of the kind, or all caches with the target's tokenizer."""
    store = Store(root)
    if what in ROWS:
        for artifact in artifacts(store, what):
            print(*(f"   {said(row)}" for row in published_rows(artifact)), sep="\n")
        return
    tokenizer = AutoTokenizer.from_pretrained(what)
    for artifact in artifacts(store, "target_cache"):
        with TemporaryDirectory() as scratch:
            cache = TargetCache(artifact, Path(scratch))
            samples = [cache.record(number) for number in range(min(len(cache), MOST))]
            print(*(f"   {each.sample_id[:8]} {marked(each, tokenizer)!r}" for each in samples), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
