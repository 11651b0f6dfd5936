"""Children that do one thing and end: a stage, its shards, a look at targets or cards; and what their parent hears."""
