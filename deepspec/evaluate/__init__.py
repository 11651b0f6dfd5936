"""Evaluate: how well a draft speaks for its target, on benchmarks, with intervals. Quality only, no wall clock."""
