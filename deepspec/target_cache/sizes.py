"""What a target cache takes: bytes, files and requests, by the layout of docs/formats/target_cache.md."""

from collections.abc import Mapping

from pydantic import Field

from deepspec.ranges import NOTHING, Range
from deepspec.specs import Spec

CODEC_RATIO: Mapping[str, Range] = {
    "bf16": Range.around(1.0),
    "bf16-zstd": Range(low=0.68, mid=0.70, high=0.72),
    "fp8": Range(low=0.41, mid=0.43, high=0.45),
    "none": NOTHING,
}
"""Bytes of hidden states against raw bf16, as measured on real states; it differs a little from target to target."""

MIB = 1 << 20

BF16_BYTES = 2

TOKEN_BYTES = 5
"""Token id (int32) and loss mask (one byte), stored for every position."""

PUBLISHED_TOKEN_BYTES = 6
"""The same in the published layout, which stores an attention mask too."""

HEADER = 4096
"""Bytes of a part before its first tensor: 8 of length, then JSON filled up with spaces."""

INDEX_BYTES = 60
"""Of one sample in the index: an id, which does not compress, places, a checksum."""

PIECE = 50 << 20
"""Bytes of one request, where a file is larger than two of them."""


class Captured(Spec):
    """What there is to capture."""

    samples: int = Field(ge=0)
    tokens: Range
    """Up to the last supervised one of each sample."""
    supervised: Range
    """Tokens that the target generated."""
    last_rows: Range
    """Positions whose last hidden state is stored: the supervised ones and their neighbours."""
    layers: int = Field(gt=0)
    """Captured layers."""
    hidden: int = Field(gt=0)
    """Hidden size of the target."""
    part_bytes: int = Field(gt=0)
    """Of one part before the codec."""


class CacheSize(Spec):
    """What a cache takes."""

    bytes: Range
    parts: Range
    puts: Range
    """Requests that write it."""
    gets: Range
    """Requests that read it once."""


def published_bytes(tokens: int, layers: int, width: int) -> int:
    """Return what the layout of the public caches takes: every position of all layers and the last, ids and two masks.

    Args:
        tokens: of all samples.
        layers: that are captured.
        width: hidden size of the target.
    """
    return tokens * ((layers + 1) * width * BF16_BYTES + PUBLISHED_TOKEN_BYTES)


def published_range(what: Captured) -> Range:
    """Return the same of what is known within an interval."""
    return what.tokens.scaled(published_bytes(1, what.layers, what.hidden))


def cache_size(what: Captured, ratio: Range) -> CacheSize:
    """Return what a cache takes.

    Args:
        what: is captured.
        ratio: of the codec.
    """
    states = what.tokens.scaled(what.layers).plus(what.last_rows).scaled(2.0 * what.hidden)
    tokens = what.tokens.scaled(TOKEN_BYTES)
    parts = states.plus(tokens).scaled(1 / what.part_bytes).plus(Range.around(1))
    stored = states.times(ratio).plus(tokens).plus(parts.scaled(HEADER))
    pieces = _pieces(stored.mid / parts.mid)
    return CacheSize(
        bytes=stored.plus(Range.around(what.samples * INDEX_BYTES)),
        parts=parts,
        puts=parts.scaled(_put_requests(pieces) + 2),  # the part's mark, and its worker's sign of life
        gets=parts.scaled(pieces + 1),  # the first asks how long it is
    )


def _pieces(part: float) -> int:
    return 1 if part <= PIECE else -int(-part // PIECE)


def _put_requests(pieces: int) -> int:
    return 1 if pieces < 2 else pieces + 2  # begin and end of a multipart upload
