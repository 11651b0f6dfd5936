"""One step of training, by this library, by itself before, and by others."""
