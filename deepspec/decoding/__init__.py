"""Lossless speculative decoding, batched by rows.

rows.py         keys and values of ragged rows
target_rows.py  the target's forward pass over them
propose.py      the drafts': dspark and dflash by blocks, or nothing
eagle.py        and of eagle3 token by token, of peagle all in a pass
choose.py       one token of a proposal from a draft's logits
sampling.py     sampling and verification
confidence.py   cutting a proposal where the draft does not trust itself
decode.py       the loop; running.py its state, round.py what a round does on the device, clock.py where its time goes
recorded.py     rounds on a card: replayed (graphs.py) in fixed shapes (fixed.py) and few kernels (fused.py)
fitting.py      how many rows a card's memory holds
"""
