"""Samples on their way through the target: cut into passes and parts, computed live, held against each other."""
