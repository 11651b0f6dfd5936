"""Print what the target caches of a store hold: `python -m tests.soak.shown STORE TARGET`.

One line a cache, its counts; then one line a sample, its text with the supervised tokens between « and ».
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from deepspec.artifacts import open_artifact
from deepspec.catalog import catalog, find
from deepspec.records.batch import Record
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache

COUNTS = ("rows", "samples", "splits")
MOST = 12


def text(record: Record, tokenizer: Any) -> str:
    """Return the text of a sample; a mark stands wherever supervision begins or ends."""
    parts, on = [], False
    for token, supervised in zip(record.input_ids.tolist(), record.loss_mask.tolist(), strict=True):
        if bool(supervised) != on:
            on = not on
            parts.append("«" if on else "»")
        parts.append(tokenizer.decode([token]))
    return "".join(parts)


def main(root: str, target: str) -> None:
    """Print all published caches of a store, the first samples of each."""
    store, tokenizer = Store(root), AutoTokenizer.from_pretrained(target)
    for entry in catalog(store):
        if entry.kind != "target_cache" or entry.manifest is None:
            continue
        print(entry.address[:12], json.dumps({name: entry.manifest.counts.get(name) for name in COUNTS}))
        with TemporaryDirectory() as folder, TemporaryDirectory() as scratch:
            found = open_artifact(store, find(store, f"{entry.kind}/{entry.address}"), Path(folder))
            cache = TargetCache(found, Path(scratch))
            for number in range(min(len(cache), MOST)):
                record = cache.record(number)
                print("  ", record.sample_id[:8], repr(text(record, tokenizer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
