"""What tests are given: targets, drafts, artifacts, engines, servers. Rooms of tests share this and nothing else."""
