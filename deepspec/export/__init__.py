"""Export: the trained draft in the forms that engines load, each proved by loading it back."""
