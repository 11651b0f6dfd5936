"""What target and draft remember while they decode: keys and values by rows, and states to go back to."""
