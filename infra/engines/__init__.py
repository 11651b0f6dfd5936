"""Engines that a run starts: to answer prompts, and to serve a target with its draft."""
