"""What is seen of training: speed, memory, curves, traces."""
