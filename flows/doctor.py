"""Checks of everything a run needs, before it starts: machine, store, target, engine, sources."""

import importlib.util
import os
import platform
import sys
from collections.abc import Callable

import httpx
from rich.console import Console

from deepspec.errors import DeepSpecError, EngineError, InputError, TargetError
from deepspec.placement import Endpoint
from deepspec.plan.estimate import size
from deepspec.plan.plan import Plan
from deepspec.plan.resolve import check_sources
from deepspec.store import Store
from deepspec.target.source import find_target
from flows.choices import Choices
from infra.listeners import rich_table
from infra.settings import models_dir, secret
from infra.work import Site

TIMEOUT_SECONDS = 5.0


def examine(console: Console, choices: Choices, site: Site) -> None:
    """Show a line per check.

    Raises:
        InputError: a check failed; all of them are shown first.
    """
    plan = choices.plan()
    checks: dict[str, Callable[[], str]] = {
        "machine": lambda: _machine(site),
        "store": lambda: _store(Store(site.root)),
        "sources": lambda: _sources(plan),
        "target": lambda: _target(plan),
        "engine": lambda: _engine(plan, site),
    }
    rows = [_row(name, check) for name, check in checks.items()]
    console.print(rich_table("doctor", rows))
    failed = [str(row["check"]) for row in rows if row["result"] == "failed"]
    if failed:
        raise InputError(f"{', '.join(failed)}: see the table above; mend it and run deepspec doctor again")


def _row(name: str, check: Callable[[], str]) -> dict[str, str]:
    try:
        return {"check": name, "result": "ok", "detail": check()}
    except DeepSpecError as error:
        return {"check": name, "result": "failed", "detail": str(error)}


def _machine(site: Site) -> str:
    device = site.placement.device
    python = platform.python_version()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"Python {python} on {sys.platform}, {os.cpu_count()} cores, {size(memory)} memory, device {device}"


def _store(store: Store) -> str:
    store.check_writable()
    free = store.free_bytes()
    return f"{store.root}, {'no limit known' if free is None else size(free)} free"


def _sources(plan: Plan) -> str:
    check_sources(plan)
    return ", ".join(plan.dataset.prompts) or f"answers in {plan.dataset.answers}"


def _target(plan: Plan) -> str:
    found = find_target(plan.target, models_dir(), plan.target.name)
    return f"{found.folder}" if found else f"{plan.target.name}: will be fetched or converted by the first run"


def _engine(plan: Plan, site: Site) -> str:
    if plan.dataset.answers:
        return "none needed: answers are given"
    if site.placement.endpoints:
        return "; ".join(_endpoint(endpoint) for endpoint in site.placement.endpoints)
    kind = site.engines.kind
    if kind != "xllamacpp":
        return f"{kind}, {len(site.engines.gpus) or site.engines.count} of them; the run starts and stops them"
    if not plan.target.is_gguf:
        raise EngineError(
            f"{plan.target.name} has no GGUF file for the embedded engine; give --engine vllm (or sglang), "
            "or --endpoint URL --model NAME"
        )
    if importlib.util.find_spec("xllamacpp") is None:
        raise EngineError(
            "the embedded engine is not installed; run: pip install 'deepspec[engine]', or give --endpoint"
        )
    return "embedded (xllamacpp); the run starts and stops it"


def _endpoint(endpoint: Endpoint) -> str:
    key = _key(endpoint)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{endpoint.url}/models", headers=headers, timeout=TIMEOUT_SECONDS)
        names = [str(model["id"]) for model in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{endpoint.url}/models does not answer as an OpenAI-compatible engine: {error}") from error
    if endpoint.model not in names:
        raise TargetError(f"{endpoint.url} serves {', '.join(names)}, not {endpoint.model!r}; correct --model")
    return f"{endpoint.url} serves {endpoint.model}"


def _key(endpoint: Endpoint) -> str | None:
    if endpoint.api_key_block is None:
        return secret(endpoint.api_key_env) if endpoint.api_key_env else None
    from tasks.keys import block_key  # Prefect takes a second to import

    return block_key(endpoint)
