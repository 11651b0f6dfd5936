"""With which weights a run begins: random, from the target, fitted, those of an earlier draft."""
