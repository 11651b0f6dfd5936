"""What a finished cache counts: samples, tokens, and what each rule saved."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepspec.artifacts import Artifact, PartMark
from deepspec.target_cache.facts import SplitCounts
from deepspec.target_cache.sizes import published_bytes


def totals(marks: Sequence[PartMark], columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return samples, tokens and bytes of a cache.

    Args:
        marks: of all its parts.
        columns: of its index.
    """
    splits: dict[str, Counter[str]] = {}
    for split, length, supervised in zip(columns["split"], columns["length"], columns["supervised"], strict=True):
        splits.setdefault(split, Counter()).update(samples=1, tokens=length, supervised=supervised)
    facts = marks[0].extra["facts"]
    rendered = sum(Counter(mark.counts["rows"])["rendered_tokens"] for mark in marks)
    return {
        "splits": {name: SplitCounts(**counts).model_dump() for name, counts in sorted(splits.items())},
        "samples": len(columns["sample_id"]),
        "tokens": sum(columns["length"]),
        "supervised": sum(columns["supervised"]),
        "parts": sum(bool(mark.files) for mark in marks),
        "published_bytes": published_bytes(rendered, len(facts["layers"]), facts["hidden_size"]),
        "all_positions_bytes": published_bytes(sum(columns["length"]), len(facts["layers"]), facts["hidden_size"]),
        "raw_bytes": sum(mark.counts["raw_bytes"] for mark in marks),
        "stored_bytes": sum(mark.counts["stored_bytes"] for mark in marks),
    }


def savings(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each rule saves, as a table for people."""
    steps = (
        ("published layout", "published_bytes"),
        ("nothing after the last supervised token", "all_positions_bytes"),
        ("last hidden state only where it supervises", "raw_bytes"),
        (f"codec {counts['codec']}", "stored_bytes"),
    )
    whole = counts["published_bytes"]
    return [{"step": step, "bytes": counts[key], "share": round(counts[key] / whole, 3)} for step, key in steps]


def statistics(artifact: Artifact, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Return what a cache holds, as a table for people.

    Args:
        artifact: the published cache.
        lengths: tokens of each sample, from its index.
    """
    counts = artifact.counts
    rows = [
        {"what": f"{name}: samples / tokens / supervised", "value": " / ".join(f"{part[key]:,}" for key in part)}
        for name, part in counts["splits"].items()
    ]
    quartiles = np.percentile(np.asarray(lengths), [0, 25, 50, 75, 100]).astype(int)
    told = {
        "tokens of a sample: least, quartiles, most": ", ".join(map(str, quartiles.tolist())),
        "layers": f"{counts['layers']} of {counts['num_layers']}, and the last",
        "hidden size": counts["hidden_size"],
        "precision of the target": ", ".join(filter(None, (counts["dtype"], counts.get("quantization")))),
        "codec": counts["codec"],
        "parts": counts["parts"],
        "bytes": f"{counts['stored_bytes']:,}",
        "bytes a token": round(counts["stored_bytes"] / max(counts["tokens"], 1), 1),
        "share of the published layout": round(counts["stored_bytes"] / max(counts["published_bytes"], 1), 3),
    }
    return rows + [{"what": what, "value": value} for what, value in told.items()]
