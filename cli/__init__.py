"""The command line."""

from infra.settings import quiet_prefect

quiet_prefect()
