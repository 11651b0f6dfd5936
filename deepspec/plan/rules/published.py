"""What the plan names by its name: a cache, a draft, an earlier draft, the release that is the baseline."""

from collections.abc import Iterator

from deepspec.artifacts import Manifest, read_manifest
from deepspec.catalog import scores_before
from deepspec.checkpoint.checks import CONVOLVED, REFINED, check_mask_token, check_target
from deepspec.errors import CheckpointError, NotPublishedError, SpecError, TargetError
from deepspec.formats.recipe import TRAITS
from deepspec.models.config import DraftConfig
from deepspec.plan.known import Known
from deepspec.plan.resolve import released_name
from deepspec.plan.rules.draft import captured, check_slots, wanted
from deepspec.plan.rules.seen import LATER, Seen
from deepspec.publish import is_complete
from deepspec.target.identity import differing

STATE = "training_state.safetensors"
"""Name of the optimizer state in a draft that was trained here, see deepspec/start/previous.py."""

SHAPE = (
    "num_layers", "markov_rank", "markov_head", "confidence_head", "confidence_with_markov", "draft_vocab_size",
    *CONVOLVED, *REFINED,
)  # fmt: skip
BLOCK = (
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "qk_norm",
    "tied_kv",
    "sandwich_norms",
    "layer_scalar",
    "offset_norms",
    "gated_attention",
)
"""Traits of a draft, and of its blocks, that names and shapes of its weights hang on."""


def cache(known: Known) -> Seen:
    """Hold the target cache that the plan names against the target, and against what training wants of it."""
    manifest, facts = known.cache, known.facts
    if manifest is None or facts is None:
        return Seen("made by this run")
    where, source = f"{manifest.kind}/{manifest.address}", known.plan.train.source
    _check_complete(known, manifest)
    if source == "cache" and facts.codec == "none":
        raise SpecError(f"{where} holds tokens only; set train.source=online, rolling or engine")
    if source == "rolling" and "batch_tokens" not in manifest.spec:
        raise SpecError(f"{where} was imported and has no forward passes to repeat; set train.source=cache or online")
    if source == "rolling":
        facts.check_rolls(where)
    if source == "cache":
        facts.check_supervises(where, behind_the_end=known.plan.train.objective.looks_behind_the_end)
    if known.target is None:
        return LATER
    shape = known.target.shape
    sizes, wanted = (
        (shape.num_layers, shape.block.hidden_size, known.target.rows),
        (facts.num_layers, facts.hidden_size, facts.vocab_size),
    )
    if sizes != wanted:
        raise TargetError(
            f"target {known.target.folder}: layers, hidden size, vocabulary are {sizes}, those of {where} {wanted}"
        )
    apart = differing(known.target.folder, facts.target, known.identity)
    if apart:
        raise TargetError(
            f"{where} was made by another target than {known.target.folder}: {', '.join(apart)} differ; give --target "
            "the one that made it"
        )
    return Seen(f"{where}: {', '.join(f'{split.samples:,} {name}' for name, split in facts.splits.items())}")


def draft(known: Known) -> Seen:
    """Hold the draft that the plan names against the target."""
    if known.plan.draft is None:
        return Seen("trained by this run")
    given = known.draft
    if given is None:
        return Seen(f"{known.plan.draft}: fetched from the hub by the run")
    check_slots(known.plan, given.algorithm, given.drafts)
    if known.target is not None:
        check_target(given, known.target.shape)
    if known.tokenizer is not None:
        check_mask_token(given, known.tokenizer)
    return Seen(f"{known.plan.draft}: {given.algorithm}")


def earlier(known: Known) -> Seen:
    """Hold the draft that training shall begin with against the one that it shall train."""
    train = known.plan.train
    name = train.continue_from or train.warm_start
    if name is None or known.plan.draft is not None:
        return Seen("begins anew")
    setting = "train.continue_from" if train.continue_from else "train.warm_start"
    if not train.continue_from and name in known.placement.locations:
        return Seen(f"{setting}: {known.placement.locations[name]}")
    manifest = read_manifest(known.store, "draft", name)
    if manifest is None:
        raise NotPublishedError(
            f"{setting}: {known.store.uri(f'draft/{name}')} is not published; wanted the whole address of a draft, "
            "see: deepspec status"
        )
    _check_complete(known, manifest)
    if train.continue_from and STATE not in manifest.files:
        raise CheckpointError(
            f"{setting}: draft {name} has no optimizer state, it was trained elsewhere; set train.warm_start instead"
        )
    _check_alike(known, manifest, setting)
    return Seen(f"{setting}: draft {name}", tuple(_sees_otherwise(known, manifest, setting)))


def baseline(known: Known) -> Seen:
    """See that the scores are there that the release will be compared with."""
    address = scores_before(known.store, released_name(known.plan))
    if address is None:
        return Seen("none: the release is the first of its target")
    if read_manifest(known.store, "scores", address) is None:
        raise NotPublishedError(
            f"the ref baseline names a release whose scores, {known.store.uri(f'scores/{address}')}, are gone; let it "
            "name another one: deepspec ref baseline RELEASE"
        )
    return Seen(f"scores/{address}")


def _check_complete(known: Known, manifest: Manifest) -> None:
    if not is_complete(known.store, manifest):
        where = known.store.uri(f"{manifest.kind}/{manifest.address}")
        raise NotPublishedError(f"{where} is not complete: files of it are gone; make it again, or name another one")


def _check_alike(known: Known, manifest: Manifest, setting: str) -> None:
    """Hold algorithm, layers and shape of an earlier draft against those of the new one, as far as these are known."""
    old, new, layers = known.config_of(manifest), wanted(known), captured(known)
    algorithm = known.plan.train.draft.algorithm
    if old.algorithm != algorithm:
        raise CheckpointError(f"{setting}: draft {manifest.address} is {old.algorithm}, this run trains {algorithm}")
    if layers is not None and list(old.target_layer_ids) != list(layers):
        raise CheckpointError(
            f"{setting}: draft {manifest.address} reads layers {list(old.target_layer_ids)}, this run captures "
            f"{list(layers)}"
        )
    traits = [] if new is None else apart(old, new)
    if traits:
        raise CheckpointError(
            f"{setting}: draft {manifest.address} has another shape than the one that this run trains: "
            f"{'; '.join(traits)}; set train.draft to its shape, or begin anew"
        )


def _sees_otherwise(known: Known, manifest: Manifest, setting: str) -> Iterator[str]:
    """Tell where an earlier draft's layers saw another part of the context: its weights fit, and are used to that."""
    old, new = known.config_of(manifest), wanted(known)
    if new is not None and old.windows != new.windows:
        before, now = ("all of it" if each.window is None else f"{each.window} positions" for each in (old, new))
        yield (
            f"{setting}: layers of draft {manifest.address} saw {before} of the context, those of this run see {now}; "
            "train.draft.window and window_layers say it"
        )


def apart(old: DraftConfig, new: DraftConfig) -> list[str]:
    """Return in which traits that their weights hang on two drafts differ, in words."""
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in SHAPE}
    if TRAITS[new.algorithm].refined:  # which mixes so many slots
        pairs["block_size"] = (old.block_size, new.block_size)
    pairs |= {name: (getattr(old.block, name), getattr(new.block, name)) for name in BLOCK}
    return [f"{name} is {first}, wanted {second}" for name, (first, second) in pairs.items() if first != second]
