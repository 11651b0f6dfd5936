"""Operations: of the target that reads, of the draft that is trained, and of Muon."""

from deepspec.optimizers.orthogonal import orthogonal_flops
from deepspec.plan.cost.given import Sizes, Workload
from deepspec.ranges import Range


def draft_matrices(sizes: Sizes, work: Workload) -> list[tuple[int, int]]:
    """Return the matrices of the draft: those of its blocks, and the projection that fuses the captured layers."""
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    block = [(size, sizes.hidden) for size in (queries, queries, keys, keys, *[sizes.intermediate] * 3)]
    return [*block * work.draft_layers, (sizes.hidden, work.captured.layers * sizes.hidden)]


def draft_parameters(sizes: Sizes, work: Workload) -> float:
    """Return the trainable parameters of the draft, those of its matrices."""
    return float(sum(rows * columns for rows, columns in draft_matrices(sizes, work)))


def muon_flops(sizes: Sizes, work: Workload) -> float:
    """Return the operations by which Muon orthogonalises the draft's matrices in a step, whatever the batch."""
    rank, tables = work.refiner_rank, (sizes.vocabulary, work.draft_vocabulary or sizes.vocabulary)
    matrices = [*draft_matrices(sizes, work), *((table, rank) for table in tables if rank)]
    return sum(orthogonal_flops(*matrix) for matrix in matrices)


def read_flops(sizes: Sizes) -> float:
    """Return the operations of the target's forward pass over one token."""
    return 2.0 * (sizes.working or sizes.parameters)


def train_flops(sizes: Sizes, work: Workload) -> Range:
    """Return the operations of one pass over the data: forward and backward are three times the forward."""
    what = work.captured
    positions = min(work.anchors, what.supervised.mid / max(1, what.samples)) * work.block * what.samples
    blocks = 6 * draft_parameters(sizes, work) * positions
    head = sizes.hidden * (work.draft_vocabulary or sizes.vocabulary)
    draft_head = 4 * head * positions  # frozen: no gradient of its weight
    context = what.tokens.scaled(6 * what.layers * sizes.hidden**2)
    target_head = what.supervised.scaled(2 * head)
    return Range.around(blocks + draft_head).plus(context).plus(target_head)
