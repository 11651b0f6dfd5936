"""What decides the artifacts that are made of what users bring. No torch, so that the table of stages can hold it."""

from typing import Literal

from pydantic import Field

from deepspec.lines.bad_rows import DEFAULT_SHARE, BadShare
from deepspec.specs import NOT_ADDRESSED, Spec, TargetId
from deepspec.target_cache.sizes import MIB


class ImportSpec(Spec):
    """What an imported cache depends on."""

    source: str
    """Which public cache, see `PublicCache.source`; `Placement.locations` says where it lies."""
    target: TargetId
    """Whose states they are, as the user says: the public form does not tell."""
    codec: Literal["bf16", "bf16-zstd", "fp8"] = "bf16-zstd"
    """How states are stored from now on."""
    part_bytes: int = 256 * MIB
    """States of one part, before the codec."""
    min_supervised: int = Field(default=2, gt=0)
    """Samples with fewer supervised tokens are left out and counted."""
    bad_share: BadShare = DEFAULT_SHARE
    """Share of the samples, from the twentieth on, that may be left out; beyond it nothing is imported."""


class AdoptSpec(Spec):
    """What an adopted draft depends on."""

    files: tuple[str, ...]
    """Checksums of its config and of its weights' files; `Placement.locations` says where the folder with the first of
    them lies."""
    target: TargetId
    """Whose draft it is, as the user says: the public form does not tell."""
    name: str = Field(default="", json_schema_extra=NOT_ADDRESSED)
    """What its folder, or its place on the hub, is called."""
