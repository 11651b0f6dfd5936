"""Train: fit a draft model to what the target said and saw. With which weights it begins: deepspec/start.

spec.py        what changes the result                                    (no torch)
run.py         the stage: opens inputs, trains, writes the draft
loop.py        one optimizer step after another
task.py        model, algorithm and device: a forward and backward pass
memory.py      how many rows fit into a pass, tried before the first step
validation.py  the held-out slice; accepted.py, the accepted length over it
stored_states.py  what is stored, held against what the target computes again
supervised.py  splits that supervise nothing
narrator.py    who is told; trackers.py, too

Steps as they are read, ranks, signals and saved states: deepspec/steps. Optimizers: deepspec/optimizers. What is seen
of it: deepspec/watch.
"""
