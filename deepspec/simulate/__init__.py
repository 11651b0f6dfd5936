"""Training on states of engines in a time that is made up: the real dispatcher, queue and stream, modelled engines."""
