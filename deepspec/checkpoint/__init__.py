"""A draft's config and weights in every public form: reading, writing, and what they must hold."""
