"""What orthogonalising a matrix takes; no torch, so that a plan can tell it."""

STEPS = 5
"""Newton-Schulz steps of Muon."""


def orthogonal_flops(rows: int, columns: int) -> float:
    """Return the operations by which Muon orthogonalises a matrix's momentum, whatever the batch.

    With m the smaller side and n the larger, each step makes X Xᵀ (2·m²·n), that times itself (2·m³), and a product of
    the sum with X (2·m²·n).
    """
    m, n = sorted((rows, columns))
    return STEPS * (4.0 * m**2 * n + 2.0 * m**3)
