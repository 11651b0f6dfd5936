"""A Prefect server, a worker and every deployment."""
