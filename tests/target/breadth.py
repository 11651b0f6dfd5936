"""One type of target through everything that a pipeline asks of it; what came of it is a row of docs/targets.md."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.checkpoint.config import write_draft_config
from deepspec.checkpoint.draft import adopt_target
from deepspec.checkpoint.ends import read_ends
from deepspec.checkpoint.new import new_draft_config
from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.errors import TargetError
from deepspec.export.proof import output_difference, read_back
from deepspec.export.run import FORMS
from deepspec.families import read_folder
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.forms.form import FormSource
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft
from deepspec.parity.check import check_parity
from deepspec.proposers.propose import proposer_for
from deepspec.records.batch import Record, collate
from deepspec.rounds.decoded import Prompt, Settings
from deepspec.start.initial import initialize
from deepspec.target.load import Target, load_target
from tests.given.drafts.recipes import sized
from tests.given.targets import zoo, zoo_images
from tests.given.targets.tiny import VOCAB, tokenizer

ALGORITHM_NAMES = ("dspark", "dflash", "eagle3")
STEPS = 3
NEW_TOKENS = 12


@dataclass(kw_only=True)
class Found:
    """What came of one type."""

    model_type: str
    proof: str = ""
    """How it is read: "family", or "general" once its proof has passed; empty: it was refused."""
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Algorithm -> loss before the first and after the last step."""
    way: str = ""
    """How it decodes (deepspec/kv/readers.py)."""
    lossless: bool = False
    forms: tuple[str, ...] = ()
    """Forms of drafts for engines that can hold a draft of it."""
    reason: str = ""
    """Why something of this is missing."""

    @property
    def learns(self) -> bool:
        """Whether every algorithm's loss fell."""
        return len(self.losses) == len(ALGORITHM_NAMES) and all(last < first for first, last in self.losses.values())

    @property
    def row(self) -> str:
        """Return the row of the table."""
        learns = "falls" if self.learns else ("" if not self.losses else "does not fall")
        decodes = self.way if self.lossless else (f"NOT lossless ({self.way})" if self.way else "")
        cells = (f"`{self.model_type}`", self.proof, learns, decodes, ", ".join(self.forms), self.reason)
        return f"| {' | '.join(cells)} |"


def examine(model_type: str) -> Found:
    """Return what comes of a type; nothing wrong is left unsaid, for only a refusal by name ends it early."""
    found = Found(model_type=model_type)
    if model_type in zoo.NOT_BUILT:
        found.reason = zoo.NOT_BUILT[model_type]
        return found
    if model_type not in zoo_images.TYPES and zoo.is_encoder_decoder(model_type):
        found.reason = "an encoder-decoder"
        return found
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        room = zoo_images if model_type in zoo_images.TYPES else zoo
        room.build(model_type).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        try:
            target = load_target(folder)
        except TargetError as error:
            found.reason = plain(str(error), folder)
            return found
        found.proof = "general" if target.shape.general else "family"
        check_ends(target)
        for algorithm in ALGORITHM_NAMES:
            draft, found.losses[algorithm] = trained(target, algorithm)
            found.way, found.lossless = decoded(target, draft)
            if not found.lossless:
                break
            if algorithm == "dspark":
                found.forms = held(draft, folder)
    return found


def plain(message: str, folder: Path) -> str:
    """Return a message without what differs from run to run, as a cell of a table."""
    told = message.replace(f"target {folder}: ", "").replace("|", "\\|").splitlines()[0]
    return told.partition(": ")[2] if told.startswith("target of model_type") else told


def check_ends(target: Target) -> None:
    """Check that training finds the loaded model's embedding and head in the files."""
    embedding, head, bias = read_ends(target.folder)
    torch.testing.assert_close(embedding, target.embed_weight, rtol=0, atol=0)
    torch.testing.assert_close(head, target.head_weight, rtol=0, atol=0)
    assert (bias is None) == (target.head_bias is None)
    torch.testing.assert_close(bias, target.head_bias, rtol=0, atol=0) if bias is not None else None


def trained(target: Target, algorithm: Any) -> tuple[BlockDraft | EagleDraft, tuple[float, float]]:
    """Return a draft after some steps on one batch, and its loss before and after."""
    first = 0 if algorithm == "dspark" else -1  # its form is written for SGLang, whose blocks read no embedding
    layers = tuple(sorted({first, max(0, target.num_layers - 2)}))
    recipe = DraftRecipe(**sized(algorithm, markov_rank=4, block_size=3, num_layers=1))
    objective = Objective(num_anchors=8, ttt_length=2)
    mask = None if algorithm == "eagle3" else VOCAB - 1
    shape = replace(
        read_folder(target.folder),
        embedding_scale=target.reading.embedding_scale,
        head_bias=target.head_bias is not None,
    )
    draft = build_draft(new_draft_config(shape, recipe, layers, mask, objective))
    adopt_target(draft, target.embed_weight, target.head_weight, target.head_bias)
    initialize(draft, seed=0)
    ids = torch.arange(3, 43)[None]
    hidden, last = target.capture(ids, layers)
    supervised = torch.ones(ids.shape[1], dtype=torch.bool)
    record = Record(sample_id="a", input_ids=ids[0], loss_mask=supervised, hidden=hidden[0], last_hidden=last[0])
    batch, taught = collate([record]), ALGORITHMS[algorithm]
    optimizer = torch.optim.AdamW([each for _, each in draft.trainable()], lr=3e-3)
    losses = []
    for _ in range(STEPS + 1):
        part = taught.supervise(draft.config, objective, batch, [1])
        result = taught.loss(draft, batch, part, part.denominators)
        losses.append(float(result.loss.detach()))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    return draft.eval().requires_grad_(False), (losses[0], losses[-1])


def decoded(target: Target, draft: BlockDraft | EagleDraft) -> tuple[str, bool]:
    """Return how a target decodes, and whether that is right.

    Two prompts give the tokens that the model itself finds most likely, each read anew; and states read a few tokens
    at a time, with others taken back between, are those of one pass: tokens say little where they repeat themselves.
    """
    proposer = proposer_for(draft)
    rows = TargetRows(target, proposer.layers)
    settings = Settings(max_new_tokens=NEW_TOKENS, stop=False)
    prompts = [Prompt(sample_id=str(size), ids=list(range(3, 3 + size))) for size in (5, 14)]
    found = {each.sample_id: each.tokens for each in Decoder(rows, proposer, settings, frozenset()).decode(prompts)}
    same = all(found[each.sample_id] == greedy(target, each.ids) for each in prompts)
    return rows.way, same and check_parity(target, draft, torch.arange(3, 43)).passed


@torch.no_grad()
def greedy(target: Target, prompt: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens that the model itself finds most likely, everything read anew for each."""
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        logits = target.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def held(draft: BlockDraft | EagleDraft, folder: Path) -> tuple[str, ...]:
    """Return the forms that hold a draft, each written and read back."""
    tensors = {name: tensor.clone() for name, tensor in draft.state_dict().items()}
    source = FormSource(
        draft=draft.config,
        config=write_draft_config(draft.config),
        tensors=tensors,
        target="tiny",
        target_folder=folder,
    )
    return tuple(name for name, form in FORMS.items() if form.refuse(source) is None and _again(source, name, draft))


def _again(source: FormSource, name: str, draft: BlockDraft | EagleDraft) -> bool:
    with tempfile.TemporaryDirectory() as work:
        FORMS[name].write(source, Path(work))
        return output_difference(read_back(source, *FORMS[name].read(Path(work))), draft) < 1e-4
