"""A target and its draft, loaded for decoding."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Self

import torch

from deepspec import families
from deepspec.artifacts import Artifact
from deepspec.checkpoint.checks import check_mask_token, check_target
from deepspec.checkpoint.draft import CONFIG, WEIGHTS, load_config, load_draft
from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows, silent
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.models.layout import lay_out_for_decoding
from deepspec.proposers.propose import NoProposer, Proposer, proposer_for
from deepspec.rounds.decoded import Settings
from deepspec.target.load import Target, load_target


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A target and a draft that fits it."""

    target: Target
    draft: BlockDraft | EagleDraft
    slots: int
    """Tokens proposed per round."""
    say: Callable[[str], None] = silent
    """Told where a card is used at less than its speed."""

    def telling(self, say: Callable[[str], None]) -> Self:
        """Return the pair with someone to tell, once, where a card is used at less than its speed."""
        return replace(self, say=cache(say))

    def speculative(
        self, settings: Settings, batch: int | None, draft: BlockDraft | EagleDraft | None = None
    ) -> Decoder:
        """Return a decoder that drafts, with another draft where one is given; no batch: as many as memory holds."""
        proposer = proposer_for(draft or self.draft, self.slots, self.target.stop_ids if settings.stop else frozenset())
        return self._decoder(proposer, settings, batch)

    def plain(self, settings: Settings, batch: int | None) -> Decoder:
        """Return a decoder that uses the target alone."""
        return self._decoder(NoProposer(), settings, batch)

    def _decoder(self, proposer: Proposer, settings: Settings, batch: int | None) -> Decoder:
        stops = self.target.stop_ids if settings.stop else frozenset[int]()
        return Decoder(TargetRows(self.target, proposer.layers, self.say), proposer, settings, stops, batch)


def draft_folder(draft: Artifact, scratch: Path) -> Path:
    """Return a folder with the draft's config and weights, wherever its store keeps them."""
    folder = scratch / f"draft-{draft.manifest.content}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(draft.path(name).resolve())
    return folder


def load_pair(
    target_folder: Path,
    draft_folder: Path,
    *,
    dtype: str,
    device: str,
    draft_dtype: str | None = None,
    slots: int | None = None,
) -> Pair:
    """Return target and draft, ready to decode.

    Args:
        target_folder: of the target.
        draft_folder: of the draft, in the public form.
        dtype: of the target, a name in `deepspec.target.load.COMPUTED`; auto is that of its checkpoint.
        device: torch device of both.
        draft_dtype: of the draft, a torch dtype's name; None: the target's.
        slots: tokens proposed per round; None: the draft's block size.

    Raises:
        TargetError: the target cannot be loaded.
        CheckpointError: the draft cannot be loaded, or was made for another target, or text holds its mask token.
    """
    check_target(load_config(draft_folder), families.read_folder(target_folder))
    target = load_target(target_folder, dtype, device)
    chosen = target.dtype if draft_dtype is None else getattr(torch, draft_dtype)
    draft = load_draft(draft_folder, chosen, target.device)
    check_mask_token(draft.config, target.tokenizer)
    if len(target.devices) == 1:  # what brings states from device to device computes with weights as they come
        lay_out_for_decoding(target.model)
    lay_out_for_decoding(draft)
    proposer = proposer_for(draft, slots)
    return Pair(target=target, draft=draft, slots=proposer.slots)
