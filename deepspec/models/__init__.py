"""The draft models. They branch on traits of a config, never on a family's name."""

from deepspec.formats.draft_shape import DraftConfig
from deepspec.models.attention import Context, KeyValue
from deepspec.models.draft import BlockDraft, Draft, EagleDraft

__all__ = ["BlockDraft", "Context", "Draft", "DraftConfig", "EagleDraft", "KeyValue", "build_draft"]


def build_draft(config: DraftConfig) -> BlockDraft | EagleDraft:
    """Return the draft that a config describes, with weights that mean nothing yet."""
    return EagleDraft(config) if config.algorithm == "eagle3" else BlockDraft(config)
