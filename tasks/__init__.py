"""Prefect tasks: one per stage, one statement each."""

from infra.settings import quiet_prefect

quiet_prefect()
