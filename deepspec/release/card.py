"""What the model card says, as plain values for the template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepspec.artifacts import Manifest
from deepspec.formats.exports import ExportedForm
from deepspec.formats.recipe import TRAITS
from deepspec.formats.scores import Scores
from deepspec.formats.speed import Speed
from deepspec.page.tables import acceptance_rows
from deepspec.release.spec import ReleaseSpec

_HUB_LICENSES = frozenset({"apache-2.0", "mit", "gemma", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause", "llama3.1"})
"""Identifiers that the hub knows; others are written as `other` with their name."""


SHOWN = (
    "benchmark", "temperature", "samples", "accepted length (with bonus)", "95 % interval", "without bonus",
    "verify rate", "turns left out",
)  # fmt: skip


_SGLANG = "sglang serve --model-path"
_NEXTN = "NEXTN"
"""SGLang's name for the heads that a target ships."""


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


def score_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return the acceptance of each benchmark, of all together, and of the untrained draft, in few columns."""
    return [{name: row[name] for name in SHOWN if name in row} for row in acceptance_rows(scores)]


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


_EAGLES: Mapping[str, bool] = {name: traits.parallel for name, traits in TRAITS.items() if not traits.blocks}
"""Algorithms that engines serve as Eagle3, and whether all tokens come of a pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposed:
    """What an engine is told to propose."""

    algorithm: str
    tokens: int
    """In each round: the draft's, or as was found best under load."""
    schedule: Sequence[Sequence[int]] = ()
    """First and last batch size, and tokens; none: always the same."""
    least: float = 0.0
    """A proposal ends before a token less likely than this."""

    @classmethod
    def of(cls, scores: Scores, speed: Speed) -> "Proposed":
        """Return what was found best under load, or what the draft proposes."""
        found = speed.under_load
        best = None if found is None else found.best_setting()
        if found is None or best is None:
            return cls(algorithm=scores.algorithm, tokens=scores.slots)
        schedule = found.schedule() if len(found.schedule()) > 1 else ()
        return cls(algorithm=scores.algorithm, tokens=best[0], least=best[1], schedule=schedule)


def _in_sglang(method: str, slots: int) -> str:
    """Return the options by which SGLang proposes so many tokens, one after another: left to itself it makes a tree."""
    if method == "dspark":
        return f"--speculative-dspark-block-size {slots}"
    if method == "dflash":  # its blocks hold the anchor, too
        return f"--speculative-dflash-block-size {slots + 1}"
    return f"--speculative-num-steps {slots} --speculative-eagle-topk 1 --speculative-num-draft-tokens {slots + 1}"


def _with_target(form: str, slots: int) -> str:
    """Return how heads are served, or loaded, that are written into their target's own files."""
    if form == "vllm":
        config = json.dumps({"method": "mtp", "num_speculative_tokens": slots})
        return f"vllm serve TARGET_WITH_THESE_FILES --speculative-config '{config}'"
    if form == "sglang":
        return f"{_SGLANG} TARGET_WITH_THESE_FILES --speculative-algorithm {_NEXTN} \\\n  {_in_sglang('mtp', slots)}"
    if form == "speculators":
        return 'MTPDraftModel.from_pretrained("./speculators")  # of speculators; its own tools put it into the target'
    return 'deepspec.checkpoint.draft.load_draft(Path("./deepspec"))'


def serving(form: str, target: str, exported: ExportedForm, proposed: Proposed) -> str:
    """Return the command that serves a form, or the lines that load it."""
    algorithm, slots = proposed.algorithm, proposed.tokens
    if exported.method == "mtp" and form != "llama.cpp":
        return _with_target(form, slots)
    method = exported.method or ("eagle3" if algorithm in _EAGLES else "dspark")
    if form in ("vllm", "speculators"):
        config: dict[str, Any] = {"method": method, "model": f"./{form}", "num_speculative_tokens": slots}
        if _EAGLES.get(algorithm):
            config["parallel_drafting"] = True
        if proposed.schedule:
            config["num_speculative_tokens"] = max(tokens for _, _, tokens in proposed.schedule)
            config["num_speculative_tokens_per_batch_size"] = [list(each) for each in proposed.schedule]
        return f"vllm serve {target} --speculative-config '{json.dumps(config)}'"
    if form == "sglang":
        return (
            f"{_SGLANG} {target} --speculative-algorithm {method.upper()} \\\n"
            f"  --speculative-draft-model-path ./sglang {' '.join((_in_sglang(method, slots), *exported.options))}"
        )
    if form == "llama.cpp":
        file = next(iter(exported.files), "draft.gguf")
        least = f" --spec-draft-p-min {proposed.least:g}" if proposed.least else ""
        words = f"--spec-type draft-{method} --spec-draft-n-max {slots}{least}"
        return f"llama-server -m TARGET.gguf -md ./llama.cpp/{file} {words}"
    if form == "huggingface":
        return 'AutoModel.from_pretrained("./huggingface", trust_remote_code=True)  # needs: pip install deepspec'
    return 'deepspec.checkpoint.draft.load_draft(Path("./deepspec"))'
