"""Deployments, schedules and automations, one file for each kind of place; `infra.server.setup` deploys them."""
