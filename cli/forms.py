"""All forms of one draft, gathered for the parity gate: what is published about it, or what lies in a folder."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from cli.published import placement_of
from deepspec.artifacts import Artifact, open_artifact
from deepspec.brought.draft import translated
from deepspec.catalog import catalog
from deepspec.checkpoint.checks import check_mask_token, check_target
from deepspec.checkpoint.draft import load_config, load_draft
from deepspec.checkpoint.files import read_config
from deepspec.checkpoint.foreign import is_foreign
from deepspec.decoding.pair import draft_folder
from deepspec.errors import SpecError
from deepspec.export.run import read_forms
from deepspec.families import read_folder
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.parity.check import CachedStates, Parity, check_parity
from deepspec.passes.live import open_cache
from deepspec.placement import Placement
from deepspec.target.load import load_target
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.codec import TOKENS_ONLY
from infra.settings import scratch_dir

LONGEST = 512
"""Tokens of a cached sample that are compared: where forms part, they do so early."""


@dataclass(frozen=True, kw_only=True)
class Forms:
    """A draft in all its forms."""

    folder: Path
    """Of the draft, in the public form."""
    target: Path
    """Folder of the target."""
    cached: CachedStates | None = None
    """A sample of the cache that it was trained on."""
    exported: dict[str, BlockDraft | EagleDraft] = field(default_factory=dict)

    def check(self, text: str | None) -> Parity:
        """Compare them on a text, or on the cached sample.

        Raises:
            SpecError: there is neither.
            CheckpointError: the draft was made for another target.
        """
        config = load_config(self.folder)
        check_target(config, read_folder(self.target))
        target = load_target(self.target, torch.float32)
        check_mask_token(config, target.tokenizer)
        if text is not None:
            ids = torch.tensor(target.tokenizer(text)["input_ids"])
        elif self.cached is not None:
            ids = self.cached.stored.input_ids
        else:
            raise SpecError("no cached sample is known for this draft; give a text: deepspec parity DRAFT TEXT")
        cached = self.cached if text is None else None
        return check_parity(target, load_draft(self.folder), ids, cached=cached, forms=self.exported)


def gather(draft: Artifact | Path, target: Path) -> Forms:
    """Return the forms of a published draft, or of a checkpoint's folder.

    Args:
        draft: as `named_draft` found it.
        target: folder of its target.
    """
    if isinstance(draft, Artifact):
        return published_forms(draft, placement_of(draft, target), target)
    folder = draft
    if is_foreign(read_config(folder)):
        folder = translated(folder, target, scratch_dir() / "parity" / "translated")
    return Forms(folder=folder, target=target)


def published_forms(draft: Artifact, placement: Placement, target: Path) -> Forms:
    """Return a published draft with a sample of its cache and its exports, as far as they are in the store."""
    folder = draft_folder(draft, placement.scratch)
    exported: dict[str, BlockDraft | EagleDraft] = {}
    for exports in _made_from(draft, placement.scratch):
        exported |= read_forms(exports, folder, placement.scratch / "parity")
    return Forms(folder=folder, target=target, cached=_cached(draft, placement), exported=exported)


def _made_from(draft: Artifact, scratch: Path) -> list[Artifact]:
    """Return the exports of a draft that still are of its present content."""
    found = [entry.manifest for entry in catalog(draft.store) if entry.kind == "exports" and entry.state == "published"]
    refs = [manifest for manifest in found if manifest is not None and manifest.inputs["draft"] == draft.ref]
    return [Artifact(draft.store, manifest, scratch) for manifest in refs]


def _cached(draft: Artifact, placement: Placement) -> CachedStates | None:
    """Return a held-out sample as the draft's cache stores it and as the target gives it now, the same way."""
    if "target_cache" not in draft.manifest.inputs:  # trained elsewhere
        return None
    cache = open_artifact(draft.store, draft.manifest.inputs["target_cache"], placement.scratch)
    if cache.counts["codec"] == TOKENS_ONLY:
        return None
    stored = TargetCache(cache, placement.scratch)
    numbers = [*stored.numbers("validation").tolist(), *stored.numbers("train").tolist()]
    record, fresh = stored.record(numbers[0]), open_cache(cache, placement, "online").record(numbers[0])
    length = min(LONGEST, stored.facts.with_states(len(record.input_ids)))
    return CachedStates(stored=record.cut(length), fresh=fresh.cut(length), codec=stored.facts.codec)
