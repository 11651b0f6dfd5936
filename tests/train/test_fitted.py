"""A draft that starts from the linear guess says what a linear target says, before its first step."""

import torch
from torch.nn.functional import cosine_similarity

from deepspec.algorithms import ALGORITHMS
from deepspec.algorithms.slots import backbone
from deepspec.formats.recipe import Objective
from deepspec.models.draft import BlockDraft
from deepspec.records.batch import Record, collate, supervises
from deepspec.start.fitted import fit_first_block
from tests.given.drafts.learning import LAYERS, MASK, SIZE, tiny
from tests.train.test_bigrams import Few

LENGTH = 60


def linear_target(model: BlockDraft, places: int) -> list[Record]:
    """Return samples whose last state is a linear map of the context some positions earlier.

    As in a trained model, states have a direction in common, and embeddings another.
    """
    generator = torch.Generator().manual_seed(1)
    model.embed_tokens.weight.data += 4
    weight = torch.randn(SIZE, SIZE, generator=generator)
    records = []
    for number in range(20):
        hidden = torch.randn(LENGTH, len(LAYERS) * SIZE, generator=generator) + 4
        context = model.context(hidden).detach()
        said, mask = ((context - context.mean(0)) @ weight).roll(places, 0), torch.arange(LENGTH) > 5
        records.append(
            Record(
                sample_id=str(number),
                input_ids=torch.randint(0, MASK, (LENGTH,), generator=generator),
                loss_mask=mask,
                hidden=hidden,
                last_hidden=said[supervises(mask)],
            )
        )
    return records


def agreement(model: BlockDraft, records: list[Record], slot: int) -> float:
    """Return the mean cosine between a slot's state and the target's."""
    batch = collate(records)
    supervision = ALGORITHMS["dspark"].supervise(model.config, Objective(num_anchors=20), batch, range(len(records)))
    with torch.no_grad():
        states = backbone(model, batch, supervision).view(len(records), -1, model.config.block_size, SIZE)
    wanted = batch.last_hidden.gather(1, (supervision.anchors + slot)[..., None].expand(-1, -1, SIZE))
    return float(cosine_similarity(states[:, :, slot], wanted, dim=-1)[supervision.supervised[..., slot]].mean())


def test_the_first_slot_says_what_follows_from_the_state_before_the_anchor() -> None:
    model = tiny("dflash")
    records = linear_target(model, places=1)
    assert abs(agreement(model, records, 0)) < 0.2
    assert fit_first_block(model, Few(records), None) is None
    assert agreement(model, records, 0) > 0.9


def test_the_second_slot_looks_two_positions_back() -> None:
    model = tiny("dflash")
    records = linear_target(model, places=2)
    assert fit_first_block(model, Few(records), None) is None
    assert agreement(model, records, 1) > 0.6


def test_too_few_positions_are_no_ground_for_a_guess() -> None:
    model = tiny("dflash")
    few = linear_target(model, places=1)[:1]
    assert fit_first_block(model, Few(few), None) == "52 positions to learn from, wanted 64"


def test_a_block_of_another_form_stays_as_it_was() -> None:
    model = tiny("dflash", target="gemma4", shape="target")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fit_first_block(model, Few([]), None) == "its blocks have another form"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
