"""A sample of training, a batch of them, and the order of an epoch."""
