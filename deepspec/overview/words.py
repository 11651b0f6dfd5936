"""What an artifact holds, in words: a few of the counts of its manifest, those that one looks for."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deepspec.artifacts import Manifest

Counts = Mapping[str, Any]


def held(manifest: Manifest) -> str:
    """Return what an artifact holds, in one line."""
    return _WORDS[manifest.kind](manifest.counts)


def _prompts(counts: Counts) -> str:
    return _joined([f"{counts['kept']:,} of {counts['read']:,} rows kept", *_each(counts["splits"], "in {}")])


def _answers(counts: Counts) -> str:
    rows = [f"{counts['success']:,} of {counts['input']:,} prompts answered"]
    rows += [f"{counts[name]:,} {word}" for name, word in (("error", "failed"), ("skipped", "skipped")) if counts[name]]
    tokens = counts.get("completion_tokens")
    return _joined([*rows, *([f"{tokens:,} tokens written"] if tokens else [])])


def _target_cache(counts: Counts) -> str:
    tokens = f"{counts['tokens']:,} tokens, {counts['supervised']:,} of them supervised"
    return _joined([f"{counts['samples']:,} samples", tokens, f"stored as {counts['codec']}"])


def _draft(counts: Counts) -> str:
    told = [str(counts["algorithm"])]
    if counts.get("parameters"):
        told.append(f"{_large(counts['parameters'])} parameters trained")
    if counts.get("steps"):
        told.append(f"{counts['steps']:,} steps")
    if counts.get("loss") is not None:
        told.append(f"loss {counts['loss']:.3f}")
    return _joined(told)


def _exports(counts: Counts) -> str:
    refused = [f"not for {name}" for name in counts.get("refused") or ()]
    return _joined([f"for {', '.join(counts['forms'])}", *refused])


def _scores(counts: Counts) -> str:
    return _joined([*_lengths(counts), _lossless(counts.get("lossless"))])


def _speed(counts: Counts) -> str:
    return _joined(_speedups(counts))


def _release(counts: Counts) -> str:
    count = len(counts.get("warnings") or ())
    warnings = [f"{count} warning{'' if count == 1 else 's'}"] if count else []
    return _joined([str(counts["title"]), *_lengths(counts), _lossless(counts.get("lossless")), *warnings])


def _lengths(counts: Counts) -> list[str]:
    found = counts["accepted_length"].items()
    return [f"accepted length {value:.2f} at temperature {float(heat):g}" for heat, value in found if value is not None]


def _lossless(found: bool | None) -> str:
    return "losslessness not checked" if found is None else "lossless" if found else "NOT lossless"


def _speedups(counts: Counts) -> list[str]:
    return [f"{value:.2f} times as fast at batch {batch}" for batch, value in counts["speedup"].items()]


def _large(count: int) -> str:
    return f"{count / 1e6:,.1f} million" if count >= 1e6 else f"{count:,}"


def _each(counts: Mapping[str, int], pattern: str) -> list[str]:
    return [f"{value:,} {pattern.format(name)}" for name, value in sorted(counts.items(), key=lambda item: -item[1])]


def _joined(told: Iterable[str]) -> str:
    return "; ".join(told)


_WORDS: Mapping[str, Callable[[Counts], str]] = {
    "prompts": _prompts,
    "answers": _answers,
    "target_cache": _target_cache,
    "draft": _draft,
    "exports": _exports,
    "scores": _scores,
    "speed": _speed,
    "release": _release,
}
"""Kind -> its words."""
