"""What the optimizer takes of a step, where that does not hang on the batch."""

from deepspec.plan.budget import workload
from deepspec.plan.cost.flops import muon_flops, train_flops
from deepspec.plan.known import Known
from deepspec.plan.resolve import sizes_of
from deepspec.plan.rules.draft import GIVEN
from deepspec.plan.rules.seen import LATER, Seen

WORTH_TELLING = 0.5
"""Share of a step's other operations from which on Muon's are told."""


def optimizer(known: Known) -> Seen:
    """Hold the operations by which Muon orthogonalises matrices against those of the rest of a step."""
    plan, name = known.plan, known.plan.train.optimizer
    if plan.draft is not None:
        return GIVEN
    if name != "muon":
        return Seen(name)
    sizes = plan.target.sizes if known.target is None else sizes_of(known.target)
    if sizes is None:
        return LATER
    work, batch = workload(plan, sizes), plan.train.global_batch
    share = muon_flops(sizes, work) / (train_flops(sizes, work).mid * batch / max(1, work.captured.samples))
    detail = f"muon, {share:.2g} of the operations of the rest of a step"
    if share < WORTH_TELLING:
        return Seen(detail)
    return Seen(
        detail,
        (
            f"train.optimizer=muon orthogonalises every matrix once a step, whatever the batch: about {share:.2g} "
            f"times the operations of the rest of a step (train.global_batch={batch}); raise that, or take adamw",
        ),
    )
