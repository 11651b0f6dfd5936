"""What version 0.1 left behind."""

from tests.given.apart import ROOT

LEFT = ROOT / "tests" / "golden" / "store_of_0_1.tar.xz"
"""What the chain of `tests.given.published.chain` published at b1a4fa0, and its target."""
