"""What the model card says, as plain values for the template."""

import json
from collections.abc import Mapping
from typing import Any

from deepspec.artifacts import Manifest
from deepspec.formats.exports import ExportedForm
from deepspec.formats.scores import Acceptance, Scores
from deepspec.formats.speed import Speed
from deepspec.release.spec import ReleaseSpec

_HUB_LICENSES = frozenset({"apache-2.0", "mit", "gemma", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause", "llama3.1"})
"""Identifiers that the hub knows; others are written as `other` with their name."""


def title(spec: ReleaseSpec, algorithm: str) -> str:
    """Return the heading of the card."""
    return spec.title or f"{algorithm} draft for {spec.target}"


def front_matter(spec: ReleaseSpec, algorithm: str) -> dict[str, Any]:
    """Return the metadata that the Hugging Face hub reads."""
    known = spec.target_license.lower() in _HUB_LICENSES
    license_keys = {"license": spec.target_license.lower()} if known else {"license": "other"}
    if not known and spec.target_license != "other":
        license_keys["license_name"] = spec.target_license
    base = {"base_model": spec.target} if "/" in spec.target and not spec.target.startswith(("/", ".")) else {}
    return {
        **license_keys,
        **base,
        "library_name": "deepspec",
        "tags": ["speculative-decoding", "draft-model", algorithm],
    }


def score_rows(scores: Scores) -> list[dict[str, str]]:
    """Return a row for each benchmark and temperature, for all together, and for the untrained draft."""
    rows = [(each.benchmark, f"{each.temperature:g}", each.acceptance) for each in scores.benchmarks]
    rows += [("all", f"{float(temperature):g}", found) for temperature, found in scores.overall.items()]
    if scores.untrained is not None:
        rows.append(("untrained draft", f"{float(next(iter(scores.overall), '0')):g}", scores.untrained))
    return [_score_row(*row) for row in rows]


def speed_rows(speed: Speed) -> list[dict[str, str]]:
    """Return a row for each batch size."""
    return [
        {
            "batch": str(each.batch),
            "tokens/s": f"{each.tokens_per_second:.1f}",
            "plain tokens/s": f"{each.plain_tokens_per_second:.1f}",
            "speed-up": f"{each.speedup:.2f}",
            "break-even accepted length": f"{each.round_cost:.2f}",
        }
        for each in speed.batches
    ]


def lineage_rows(lineage: Mapping[str, Manifest]) -> list[dict[str, str]]:
    """Return a row for each artifact that the release was made from."""
    return [
        {
            "artifact": name,
            "content": manifest.content,
            "made from": ", ".join(ref.prefix for ref in manifest.inputs.values()) or "sources",
            "code": str(manifest.provenance.get("git") or manifest.provenance.get("git_sha") or ""),
        }
        for name, manifest in sorted(lineage.items())
    ]


def serving(form: str, algorithm: str, slots: int, target: str, exported: ExportedForm) -> str:
    """Return the command that serves a form, or the lines that load it."""
    method = "eagle3" if algorithm == "eagle3" else "dspark"
    if form in ("vllm", "speculators"):
        config = {"method": method, "model": f"./{form}", "num_speculative_tokens": slots}
        return f"vllm serve {target} --speculative-config '{json.dumps(config)}'"
    if form == "sglang":
        return (
            f"python -m sglang.launch_server --model-path {target} --speculative-algorithm {method.upper()} \\\n"
            "  --speculative-draft-model-path ./sglang"
        )
    if form == "llama.cpp":
        file = next(iter(exported.files), "draft.gguf")
        return (
            f"llama-server -m TARGET.gguf -md ./llama.cpp/{file} --spec-type draft-{method} --spec-draft-n-max {slots}"
        )
    if form == "huggingface":
        return 'AutoModel.from_pretrained("./huggingface", trust_remote_code=True)  # needs: pip install deepspec'
    return 'deepspec.formats.draft.load_draft(Path("./deepspec"))'


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Return rows that share their keys as a markdown table."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _score_row(benchmark: str, temperature: str, found: Acceptance | None) -> dict[str, str]:
    length = None if found is None else found.accepted_length
    return {
        "benchmark": benchmark,
        "temperature": temperature,
        "samples": "0" if found is None else str(found.samples),
        "accepted length (with bonus)": _number(None if length is None else length.value),
        "95 % interval": "" if length is None else f"{_number(length.low)} to {_number(length.high)}",
        "without bonus": _number(None if found is None else found.accepted_length_without_bonus.value),
        "verify rate": _number(None if found is None else found.verify_rate.value),
    }


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
