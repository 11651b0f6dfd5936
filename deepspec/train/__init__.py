"""Train: fit a draft model to what the target said and saw. With which weights it begins: deepspec/start.

spec.py        what changes the result                                    (no torch)
run.py         the stage: opens inputs, trains, writes the draft
loop.py        one optimizer step after another
reader.py      makes steps from samples, ahead of the loop, by several threads
unread.py      steps whose losses lie on the device yet, and what was skipped among them
task.py        model, algorithm and device: a forward and backward pass
optimizer.py   AdamW on fp32 masters; gradients summed over micro-batches and ranks
ranks.py       processes that train one draft together
schedule.py    the learning rate of each step
memory.py      how many rows fit into a pass, tried before the first step
checkpoint.py  saved states with a commit mark
guard.py       losses and gradients that are not numbers, or jump
validation.py  the held-out slice
gate.py        stored states that the target computes again
supervised.py  splits that supervise nothing
progress.py    rows of metrics; meter.py speed; narrator.py, trackers.py, figure.py who is told
stop.py        TERM
"""
