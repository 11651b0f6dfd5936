"""What to do next, from what a store holds: the answer of `deepspec` alone."""

from collections.abc import Mapping, Sequence

from deepspec.artifacts import Manifest
from deepspec.catalog import Entry
from deepspec.stages import STAGES, Stage

_MISSING = {
    "regenerate": "prompts are ready, but not answered",
    "cache": "answers are there, but the target's states over them are not cached",
    "train": "a target cache is ready, but no draft is trained on it",
    "export": "a draft is trained, but not exported for engines",
    "evaluate": "a draft is trained, but not evaluated",
    "benchmark": "a draft is evaluated, but its speed is not measured",
    "release": "a draft is measured, but not released",
}
"""Stage that comes next -> how things stand."""

_EMPTY = (
    "nothing is made here yet. A small draft, trained, measured and released here in minutes, without a GPU:",
    "    deepspec run",
    "What a large one will take; nothing is spent:",
    "    deepspec plan --target qwen3-4b --dataset open-perfectblend --hardware h100x8",
)


def next_step(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return lines that say how things stand, and the command that goes on from there.

    Args:
        entries: what the store holds, in the order of the stages.
    """
    unfinished = [entry for entry in entries if entry.state != "published"]
    if unfinished:
        return _again(unfinished[0])
    made = [entry.manifest for entry in entries if entry.manifest is not None]
    newest = {each.kind: each for each in sorted(made, key=_finished) if not _is_greedy(each, made)}
    waiting = [stage for stage in STAGES.values() if stage.inputs and _waits(stage, newest)]
    if waiting:
        told = (f"{_MISSING[waiting[0].name]}; with the options that it was made with:",)
        return *told, f"    deepspec {waiting[0].name}", "or, for that and everything after it:", "    deepspec run"
    return _released(newest["release"]) if "release" in newest else _EMPTY


def _waits(stage: Stage, newest: Mapping[str, Manifest]) -> bool:
    """Return whether a stage has all its inputs, and nothing is made from the newest ones."""
    if not all(kind in newest for kind in stage.inputs):
        return False
    made = newest.get(stage.kind)
    return made is None or any(made.inputs[kind].address != newest[kind].address for kind in stage.inputs)


def _is_greedy(manifest: Manifest, made: Sequence[Manifest]) -> bool:
    """Return whether these are answers to held-out prompts alone, or their cache: they stand beside those of a run."""
    if manifest.kind == "answers":
        return manifest.spec.get("held_out") is not None
    answers = manifest.inputs.get("answers")
    return answers is not None and any(each.address == answers.address and _is_greedy(each, made) for each in made)


def _again(entry: Entry) -> tuple[str, ...]:
    stage = next(stage for stage in STAGES.values() if stage.kind == entry.kind)
    told = f"{entry.kind}/{entry.address[:12]} is {entry.state}: {entry.note}; with the options of that run:"
    return told, f"    deepspec {stage.name}", "or, for that and everything after it:", "    deepspec run"


def _released(release: Manifest) -> tuple[str, ...]:
    name = f"release/{release.address[:12]}"
    return (
        f"{release.counts['title']} is released. To serve it, with the folder of an engine:",
        f"    deepspec unpack {name} vllm FOLDER",
        "To publish it on the hub, or in another store:",
        f"    deepspec push {name} hf:ORG/NAME",
    )


def _finished(manifest: Manifest) -> str:
    return str(manifest.provenance.get("finished", ""))
