"""The parity gate of an export: one text through target, cache, draft, and every form that was written."""

from pathlib import Path

import torch
from torch import Tensor

from deepspec.artifacts import Artifact, open_artifact
from deepspec.errors import NotPublishedError
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.parity.check import CachedStates, check_form, check_parity, states_now
from deepspec.records.batch import Record
from deepspec.target.load import Target, load_target
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.codec import TOKENS_ONLY
from deepspec.target_cache.facts import CacheFacts

TEXT = (
    "A draft proposes several tokens and the target checks them in one pass: what comes out is what the target alone "
    "would have said, and where both agree it comes sooner. Whether they agree is what this text is for."
)
"""Read where no cache is at hand."""
LENGTH = range(24, 192)
"""Tokens that a sample of the cache may have to serve as the text."""


class Gate:
    """What all forms of a draft are held against.

    Args:
        draft: its artifact; the cache that it was trained on gives the text, where it is still published.
        model: the draft as trained, in fp32, on its device: the target goes there, too.
        folder: of the target.
        scratch: for parts of the cache that are fetched.
    """

    def __init__(self, draft: Artifact, model: BlockDraft | EagleDraft, folder: Path, scratch: Path) -> None:
        """Run the text through target and draft."""
        target = load_target(folder, torch.float32, str(model.fc.weight.device))
        facts, record = _cached(draft, scratch)
        self._model = model
        self._ids = _text(target, model) if record is None else record.input_ids
        cached = None
        if record is not None and facts is not None and facts.dtype == "float32":
            now = states_now(target, record, model.config.target_layer_ids)
            cached = CachedStates(stored=record, fresh=now, codec=facts.codec)
        found = check_parity(target, model, self._ids, cached=cached)
        with torch.inference_mode():
            self._hidden = target.capture(self._ids[None], model.config.target_layer_ids)[0][0]
        self.comparisons = list(found.comparisons)

    def check(self, name: str, form: BlockDraft | EagleDraft) -> None:
        """Add the comparison of a form that was read back, on the model's device."""
        self.comparisons.append(check_form(name, form, self._model, self._ids, self._hidden))


def _cached(draft: Artifact, scratch: Path) -> tuple[CacheFacts | None, Record | None]:
    """Return the first sample of a fitting length in the cache that a draft was trained on."""
    ref = draft.manifest.inputs.get("target_cache")
    try:
        artifact = None if ref is None else open_artifact(draft.store, ref, scratch)
    except NotPublishedError:
        artifact = None
    if artifact is None:
        return None, None
    facts = CacheFacts.model_validate(artifact.counts)
    if facts.codec == TOKENS_ONLY:
        return facts, None
    cache = TargetCache(artifact, scratch)
    fitting = (cache.record(n) for n in range(min(len(cache), 64)))
    found = next((record for record in fitting if len(record.input_ids) in LENGTH), None)
    return facts, None if found is None else found.cut(facts.with_states(len(found.input_ids)))


def _text(target: Target, model: BlockDraft | EagleDraft) -> Tensor:
    """Return the fixed text in the target's tokens, repeated until blocks fit into it."""
    ids: list[int] = target.tokenizer(TEXT)["input_ids"]
    wanted = max(LENGTH.start, 4 * model.config.block_size)
    return torch.tensor((ids * (wanted // len(ids) + 1))[: LENGTH.stop])
