"""Run the target over its answers and store what training needs: a sharded, verified, resumable cache."""
