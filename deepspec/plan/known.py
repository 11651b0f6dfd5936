"""What can be known of a run before anything is spent: the plan, the target's files, the store, the machine."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, Manifest, read_manifest
from deepspec.catalog import find_kind
from deepspec.chat.template import ChatTemplate
from deepspec.checkpoint.config import read_draft_config
from deepspec.checkpoint.files import CONFIG, is_checkpoint, read_config
from deepspec.checkpoint.foreign import is_foreign, public_config
from deepspec.errors import CheckpointError, NotPublishedError
from deepspec.formats.tensor_heads import read_heads, read_object
from deepspec.models.config import DraftConfig
from deepspec.placement import Placement
from deepspec.plan.machine import Machine
from deepspec.plan.plan import Plan
from deepspec.plan.presets import validated
from deepspec.specs import TargetId
from deepspec.store import Store
from deepspec.target.heads import TargetHeads, read_target
from deepspec.target.source import TargetFiles, find_target
from deepspec.target.tokens import read_chat, read_tokenizer
from deepspec.target_cache.facts import CacheFacts


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the checks of `deepspec.plan.checks` look at; each part is read when a check asks for it."""

    plan: Plan
    placement: Placement
    store: Store
    models: Path
    """Folder of prepared targets."""
    machine: Callable[[], Machine] | None
    """Looks at the cards of this machine; None: the stages compute elsewhere."""
    ready: TargetFiles | None = None
    """The target, where it has been made ready; else it is looked for."""
    identity: TargetId | None = None
    """Which target it is, once its weights have been hashed."""
    nodes: int = 1
    """Machines that train together."""
    only: str | None = None
    """What alone is made, a stage or `reevaluate`; None: all of a run. Settings of others hold nothing up."""

    def makes(self, stage: str) -> bool:
        """Return whether a stage is among what is made."""
        return self.only in (None, stage)

    @cached_property
    def files(self) -> TargetFiles | None:
        """Return where the target lies; None where it has to be fetched or converted first.

        Raises:
            TargetError: it is named as something on this machine, and is not there.
        """
        return self.ready or find_target(self.plan.target, self.models, self.plan.target.name)

    @cached_property
    def target(self) -> TargetHeads | None:
        """Return what the target's files say; None where they are not here yet."""
        return None if self.files is None else read_target(self.files.folder)

    @cached_property
    def tokenizer(self) -> Any | None:
        """Return the target's tokenizer; None where it is not here yet, or cannot be read without torch."""
        return None if self.files is None else read_tokenizer(self.files.folder)

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """Return how the target reads a conversation; None as for its tokenizer."""
        if self.files is None or self.tokenizer is None:
            return None
        return read_chat(self.files.folder, self.tokenizer)

    @cached_property
    def cache(self) -> Manifest | None:
        """Return the target cache that the plan names, if any."""
        return self.published(self.plan.dataset.cache, "target_cache")

    @cached_property
    def facts(self) -> CacheFacts | None:
        """Return what that cache says of itself."""
        return None if self.cache is None else validated(CacheFacts, self.cache.counts, "the cache's counts")

    @cached_property
    def draft(self) -> DraftConfig | None:
        """Return the draft that the plan names; None where it names none, or one that the hub has to give.

        In the form of another library it is read once the target is here, which says how many layers it has.

        Raises:
            CheckpointError: it cannot be read.
            NotPublishedError: nothing is called so.
        """
        name = self.plan.draft
        if name is None:
            return None
        if not is_checkpoint(name):
            manifest = self.published(name, "draft")
            if manifest is None:
                return None
            return self.config_of(manifest)
        folder = Path(name).expanduser()
        if not folder.is_dir():
            return None
        read_heads(folder, CheckpointError)
        told = read_config(folder)
        if not is_foreign(told):
            return read_draft_config(told)
        return None if self.target is None else read_draft_config(public_config(told, self.target.shape.num_layers))

    def config_of(self, draft: Manifest) -> DraftConfig:
        """Return the shape of a published draft; its config is fetched, and nothing else of it.

        Raises:
            CheckpointError: that cannot be read.
        """
        opened = Artifact(self.store, draft, self.placement.scratch)
        return read_draft_config(read_object(opened.path(CONFIG), CheckpointError))

    def published(self, name: str | None, kind: str) -> Manifest | None:
        """Return the published artifact of a kind that a name stands for; None for no name.

        Raises:
            NotPublishedError: nothing is called so.
            SpecError: several things are, or it is of another kind.
        """
        if name is None:
            return None
        ref = find_kind(self.store, name, kind)
        manifest = read_manifest(self.store, ref.kind, ref.address)
        if manifest is None:
            raise NotPublishedError(f"{self.store.uri(ref.prefix)} is not published; see: deepspec status")
        return manifest
