"""One draft in all its forms, held together."""
