"""Train: fit a draft model to what the target said and saw.

spec.py        what changes the result                                    (no torch)
run.py         the stage: opens inputs, trains, writes the draft
loop.py        one optimizer step after another
data.py        which samples make up which step, and reading ahead
optimizer.py   AdamW on fp32 masters; gradients summed over micro-batches and ranks
schedule.py    the learning rate of each step
checkpoint.py  saved states with a commit mark
guard.py       losses and gradients that are not numbers, or jump
validation.py  the held-out slice
figure.py      the learning curve
"""
