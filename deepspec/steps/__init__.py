"""What a training step stands on: batches read ahead, ranks, signals, saved states, what could not be read."""
