"""The terms of the one loss, as factors.

With q the draft's distribution, p the target's, and a = Σ min(p, q) the chance that the target keeps a token drawn from
q, the loss of a row is the sum of

    cross_entropy       −log q[label]
    total_variation     ‖q − p‖₁, which is 2·(1 − a)
    soft_cross_entropy  −Σ p log q
    forward_kl          Σ p log(p / q): the same less the target's entropy, with the same gradient
    reverse_kl          Σ q log(q / p)
    jensen_shannon      ½·Σ p log(p / m) + ½·Σ q log(q / m), m = (p + q) / 2
    log_acceptance      −log max(a, 1e-5); no gradient below that
    lk_hybrid           λ·forward_kl + (1 − λ)·(1 − a), λ = exp(−η·a), which is not differentiated

each times its factor.
"""

from dataclasses import dataclass

LEAST_ACCEPTANCE = 1e-5
"""Acceptance below which `log_acceptance` stays the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Factors of the loss terms."""

    cross_entropy: float = 0.0
    """Against the label."""
    total_variation: float = 0.0
    """Of ‖q − p‖₁, twice the total variation distance."""
    soft_cross_entropy: float = 0.0
    """Against p."""
    forward_kl: float = 0.0
    reverse_kl: float = 0.0
    jensen_shannon: float = 0.0
    log_acceptance: float = 0.0
    lk_hybrid: float = 0.0
    lk_sharpness: float = 3.0
    """η of `lk_hybrid`."""

    @property
    def divergent(self) -> bool:
        """Whether there is a term beside the first three."""
        return bool(self.forward_kl or self.reverse_kl or self.jensen_shannon or self.log_acceptance or self.lk_hybrid)

    @property
    def held(self) -> bool:
        """Whether a term needs p."""
        return bool(self.total_variation or self.soft_cross_entropy or self.divergent)

    @property
    def sloped(self) -> bool:
        """Whether a term has a gradient of the form q⊙(u − ⟨u, q⟩)."""
        return bool(
            self.total_variation or self.reverse_kl or self.jensen_shannon or self.log_acceptance or self.lk_hybrid
        )
