"""Lossless speculative decoding, batched by rows.

pair.py         a target and its draft, loaded; room.py which questions they have room for
decode.py       the loop; running.py its state, round.py what a round does on the device, clock.py where its time goes
target_rows.py  the target's forward pass over all rows
recorded.py     rounds on a card: replayed (graphs.py) in fixed shapes
fitting.py      how many rows a card's memory holds
schedule.py     how much of a proposal is verified under load
compare.py      is one draft better than another?

What target and draft remember: deepspec/kv. What a draft proposes, and how tokens are drawn: deepspec/proposers.
"""
