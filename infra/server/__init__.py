"""A Prefect server of our own: started, set up, found, asked."""
