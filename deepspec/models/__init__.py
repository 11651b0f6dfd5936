"""The draft models. They branch on traits of a config, never on a family's name."""
