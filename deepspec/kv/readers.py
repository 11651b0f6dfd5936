"""How a target reads tokens behind what it remembers: the fastest way that gives what one whole pass gives.

    rows     all rows in one pass, over keys and values of our own (RowCache)
    states   the same, and beside them states that give no tokens back (StateCache)
    steps    the same, one token a pass: some state-space models read no more behind a state
    chunks   a row at a time over the model's own memory, all new tokens in one pass
    tokens   the same, one token a pass
    whole    a row at a time without memory: everything is read again; always right

Families of the table read by rows. Of any other target the ways are tried in this order when it begins to decode.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch

from deepspec.errors import TargetError
from deepspec.families.quantized import computes_quantised
from deepspec.families.remembers import own_limits
from deepspec.kv.memory import Memory, MemoryReader
from deepspec.kv.own_reader import OWN, OwnReader
from deepspec.kv.row_reader import RowsReader
from deepspec.kv.state_reader import STATES, StatesReader
from deepspec.target.capture import observe
from deepspec.target.load import Target
from deepspec.target.proof import allowed, distance
from deepspec.target.reading import probe_ids

_CANNOT = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TargetError, TypeError, ValueError)
"""What models raise that are given a memory, or masks, of a kind that they do not know; and we of one of theirs."""


def reader_for(target: Target, layers: Sequence[int], *, fused: bool = True) -> MemoryReader:
    """Return how a target reads; `fused` as for `RowsReader`.

    Raises:
        TargetError: it is of a family of the table, and has layers that keep something else than keys and values.
    """
    if not target.shape.general:
        return RowsReader(target, layers, fused=fused)
    tried = next((reader for reader in _readers(target, ()) if _serves(reader, target)), None)
    way = OWN[-1] if tried is None else tried.way
    return next(reader for reader in _readers(target, layers, fused=fused) if reader.way == way)


def _readers(target: Target, layers: Sequence[int], *, fused: bool = True) -> Iterator[MemoryReader]:
    """Yield the ways in which a target can be read, in order of speed.

    Masks of ours must say all that limits what a position sees: a short trial would not reach another limit.
    """
    config = target.model.config.get_text_config().to_dict()
    if not own_limits(config):
        with suppress(TargetError):  # layers that keep something else than keys and values
            yield RowsReader(target, layers, fused=fused)
        with suppress(TargetError):  # which layers have a window is not said
            yield from (StatesReader(target, layers, way) for way in STATES if target.shape.reads_again)
    for own in OWN:
        yield OwnReader(target, layers, own)


@torch.inference_mode()
def _serves(reader: MemoryReader, target: Target) -> bool:
    """Return whether tokens read in pieces, some of them taken back, give the states of one pass over all.

    Three rows keep one, three and two of three tokens, and read on; then all keep one, and read one.
    """
    ids = probe_ids(target.model)[0]
    prompts, wrong = [ids[:4].tolist(), ids[:3].tolist(), ids[:4].tolist()], ids.flip(0)
    try:
        memory: Memory = reader.memory(3, 2 * len(ids))
        reader.prompts(prompts, memory)
        first = torch.stack([torch.cat([ids[4:5], wrong[:2]]), ids[3:6], torch.cat([ids[4:6], wrong[:1]])])
        reader.behind(first, memory)
        memory.advance(torch.tensor([1, 3, 2], device=ids.device))
        _, last = reader.behind(torch.stack([ids[5:8], ids[6:9], ids[6:9]]), memory)
        memory.advance(1)
        _, next_one = reader.behind(ids[[6, 7, 7], None], memory)
    except _CANNOT:
        return False
    _, whole, _ = observe(target.reading, ids[None, :9], ())
    wanted = torch.stack([whole[0, [5, 6, 7, 6]], whole[0, [6, 7, 8, 7]], whole[0, [6, 7, 8, 7]]])
    last = torch.cat([last, next_one], 1)
    return distance(last, wanted) <= allowed(last.dtype, quantised=computes_quantised(target.model.config))
