"""Processor seconds of decoding in one tree, to hold two trees against each other on a machine that others use, too.

    for tree in BEFORE AFTER BEFORE AFTER; do
        (cd $tree; PYTHONPATH=$tree OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python time_decoding.py TARGET_FOLDER)
    done

Run from a copy outside of both trees. The draft is random: what is accepted tells nothing, what a round costs does.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch

from deepspec.checkpoint.draft import adopt_target
from deepspec.checkpoint.new import new_draft_config
from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.families import read
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.models.draft import build_draft
from deepspec.proposers.propose import NoProposer, Proposer, proposer_for
from deepspec.rounds.decoded import Prompt, Settings
from deepspec.start.initial import initialize
from deepspec.target.load import Target, load_target

TOKENS = {1: 12, 8: 10}
"""Rows -> tokens of each."""


def drafted(target: Target) -> Proposer:
    """Return a random DSpark draft of one block and five slots."""
    layers = (1, target.num_layers // 2, target.num_layers - 4)
    recipe = DraftRecipe(algorithm="dspark", markov_rank=16, block_size=5, num_layers=1)
    draft = build_draft(new_draft_config(read(target.model.config.to_dict()), recipe, layers, 16, Objective()))
    adopt_target(draft, target.embed_weight, target.head_weight)
    initialize(draft, seed=0)
    return proposer_for(draft.eval().requires_grad_(False))


def timed(target: Target, proposer: Proposer, rows: int) -> dict[str, object]:
    """Return processor seconds and passes of the target, and a digest of the tokens."""
    prompts = [Prompt(sample_id=str(n), ids=list(range(20 + n, 60 + 3 * n))) for n in range(rows)]
    settings = Settings(max_new_tokens=TOKENS[rows], stop=False)
    decoder = Decoder(TargetRows(target, proposer.layers), proposer, settings, frozenset(), rows)
    list(decoder.decode(prompts[:1]))
    before, passes = time.process_time(), decoder.passes
    found = sorted((each.sample_id, each.tokens) for each in decoder.decode(prompts))
    seconds = time.process_time() - before
    digest = hashlib.sha256(repr(found).encode()).hexdigest()[:8]
    return {"seconds": round(seconds, 3), "passes": decoder.passes - passes, "tokens": digest}


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = load_target(Path(sys.argv[1]), "float32")
    sides = {"plain": NoProposer(), "draft": drafted(loaded)}
    print(json.dumps({f"{name} {rows}": timed(loaded, side, rows) for name, side in sides.items() for rows in TOKENS}))
