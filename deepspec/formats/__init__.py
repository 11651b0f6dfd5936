"""What two stages share on disk: conversations, benchmarks, caches, drafts and scores."""
