"""Proposers: what each kind of draft proposes, and how tokens are drawn."""
