"""Prompts, and both stages over an engine that answers them and gives states: in one pass or in two."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from deepspec.asking.sampling import Sampling
from deepspec.cache.run import run as capture
from deepspec.cache.spec import CacheSpec
from deepspec.lines.rows import write_rows
from deepspec.placement import Endpoint, Placement
from deepspec.publish import Out
from deepspec.regenerate.run import run as regenerate
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.specs import Spec
from deepspec.stages import STAGES, address
from deepspec.states.wanted import WhileAnswering
from deepspec.store import Store
from deepspec.target import identify
from tests.given.engines.prompts import prompt
from tests.given.engines.states import VERSION_SERVED
from tests.given.heard import Heard
from tests.given.published.caches import placement_for, spec_for

ALL = 8
"""Prompts."""
CUT = 24
"""Tokens of an answer at most: longer ones are cut."""


def prompts(count: int = ALL) -> list[dict[str, Any]]:
    """Return prompts of one turn and of two; every fifth is held out, every seventh is longer than an answer may be."""
    told = [f"ask {n} " + "abc"[n % 3] * (3 + n % 5) + ("y" * CUT if n % 7 == 3 else "") for n in range(count)]
    rows = [prompt(f"p{n}", *([text, f"and {n}"] if n % 4 == 1 else [text])) for n, text in enumerate(told)]
    return [{**row, "split": "validation" if n % 5 == 4 else "train"} for n, row in enumerate(rows)]


class Line:
    """Prompts, answers and cache in one store, at the addresses that stages give them."""

    def __init__(self, target: Path, folder: Path, rows: Iterable[dict[str, Any]] | None = None) -> None:
        self.target, self.scratch, self.store = target, folder / "scratch", Store(folder / "store")
        self.heard = Heard()
        out = Out(self.store, "prompts", "p", {}, self.scratch)
        write_rows(out.file("part-00000.jsonl.zst"), prompts() if rows is None else rows)
        self.prompts = out.publish(Spec(), 1, {})

    def cache_spec(self, **options: Any) -> CacheSpec:
        told = {"states": "vllm", "engine_version": VERSION_SERVED, "codec": "bf16", "while_answering": True}
        return spec_for(self.target, **{**told, **options})

    def answer_spec(self, cache: CacheSpec, longest: int = CUT, temperature: float = 1.0) -> RegenerateSpec:
        told = cache.model_dump(include=set(WhileAnswering.model_fields))
        return RegenerateSpec(
            target=identify(self.target),
            rows_per_part=5,
            sampling=Sampling(max_tokens=longest, temperature=temperature),
            while_answering=WhileAnswering.model_validate(told) if cache.while_answering else None,
        )

    def placement(self, *endpoints: Endpoint, **placed: Any) -> Placement:
        return placement_for(self.target, self.scratch, endpoints=endpoints, **placed)

    def answers(self, cache: CacheSpec, *endpoints: Endpoint, longest: int = CUT, temperature: float = 1.0) -> Artifact:
        """Regenerate, with states where the cache says so."""
        spec, given = self.answer_spec(cache, longest, temperature), {"prompts": self.prompts}
        out = Out(self.store, "answers", address(STAGES["regenerate"], spec, {"prompts": "p"}), given, self.scratch)
        inputs = {"prompts": open_artifact(self.store, self.prompts, self.scratch)}
        counts = regenerate(spec, inputs, out, self.placement(*endpoints), self.heard)
        return open_artifact(self.store, out.publish(spec, 1, counts), self.scratch)

    def cache(self, spec: CacheSpec, answers: Artifact, *endpoints: Endpoint, report: Any = None) -> ArtifactRef:
        """Capture, from what came with the answers first."""
        where = address(STAGES["cache"], spec, {"answers": answers.manifest.address})
        out = Out(self.store, "target_cache", where, {"answers": answers.ref}, self.scratch)
        counts = capture(spec, {"answers": answers}, out, self.placement(*endpoints), report or self.heard)
        return out.publish(spec, 1, counts)

    def kept(self) -> list[Path]:
        return sorted(self.scratch.rglob("while_answering/*/*/*.safetensors"))
