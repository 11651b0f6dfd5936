"""Train: fit a draft model to what the target said and saw. With which weights it begins: deepspec/start.

spec.py        what changes the result                                    (no torch)
run.py         the stage, from top to bottom: opens, checks, makes ready, trains, writes
checked.py     what is refused before the first step: no supervision, states that are not the target's
ready.py       a loop that can begin: model, samples, cut, reading ahead, what looks walk over
loop.py        one optimizer step after another
task.py        model, algorithm and device: a forward and backward pass
memory.py      how many rows fit into a pass, tried before the first step
validation.py  the held-out slice; accepted.py, the accepted length over it
written.py     what a run leaves: the draft's files, and the counts of its manifest
narrator.py    who is told; trackers.py, too

Steps as they are read, ranks, signals and saved states: deepspec/steps. Optimizers: deepspec/optimizers. What is seen
of it: deepspec/watch.
"""
