"""Checks of everything a run needs, before it starts: machine, store, target, engine, sources."""

import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import httpx

from cli.show import settled
from deepspec.errors import DeepSpecError, EngineError, InputError, TargetError
from deepspec.placement import Endpoint
from deepspec.plan.checks import Outcome, outcomes
from deepspec.plan.cost.table import size
from deepspec.plan.plan import Plan
from deepspec.plan.resolve import check_sources
from deepspec.plan.rules.seen import Seen
from deepspec.store import Store
from flows.choices import Choices
from infra.checkup.engine import serves
from infra.checkup.machine import disk, open_files, shared_memory
from infra.checkup.store import operations
from infra.children.devices import driver_version
from infra.engines.states import engine_version
from infra.known import known
from infra.settings import check_data_dir, secret
from infra.site import Site
from infra.terminal import Piece, Styled, complain, say, show_json, show_table

TIMEOUT_SECONDS = 5.0
_STYLE = {"ok": "green", "look": "yellow", "failed": "bold red", "skipped": "yellow"}
"""State -> how it is shown; `look` is ok with something that one should know."""


def examine(choices: Choices, site: Site, *, as_json: bool = False) -> None:
    """Show a line per check.

    Raises:
        InputError: a check failed; all of them are shown first.
    """
    plan, site = choices.plan, settled(site, complain if as_json else say)
    around: dict[str, Callable[[], Seen]] = {
        "machine": lambda: Seen(_machine()),
        "data folder": lambda: disk(check_data_dir()),
        "shared memory": lambda: shared_memory(site.placement),
        "open files": open_files,
        "store": lambda: operations(Store(site.root)),
        "remote sources": lambda: Seen(_remote(plan)),
        "engine": lambda: Seen(_engine(plan, site)),
        "served draft": lambda: _serves(plan, site),
    }
    if plan.train.source == "engine" or (plan.cache.states != "transformers" and plan.dataset.cache is None):
        around["states' engine"] = lambda: Seen(_states_engine(plan, site))
    found = [*(_looked(name, check) for name, check in around.items()), *outcomes(known(plan, site))]
    if as_json:
        show_json({"checks": [_told(each) for each in found]})
    else:
        show_table("doctor", [_row(each) for each in found])
    failed = [each.name for each in found if each.state == "failed"]
    if failed:
        raise InputError(f"{', '.join(failed)}: see the table above; mend it and run deepspec doctor again")


def _looked(name: str, check: Callable[[], Seen]) -> Outcome:
    try:
        seen = check()
        return Outcome(name=name, state="ok", detail=seen.detail, told=seen.told)
    except DeepSpecError as error:
        return Outcome(name=name, state="failed", detail=str(error), error=error)


def _row(found: Outcome) -> dict[str, Piece]:
    detail = "; ".join([found.detail, *found.told])
    state = "look" if found.state == "ok" and found.told else found.state
    return {"check": found.name, "result": Styled(state, _STYLE[state]), "detail": detail}


def _told(found: Outcome) -> dict[str, Any]:
    return {"check": found.name, "result": found.state, "detail": found.detail, "told": list(found.told)}


def _machine() -> str:
    python, torch = platform.python_version(), version("torch")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    driver = driver_version()
    cards = "no NVIDIA driver" if driver is None else f"NVIDIA driver {driver}"
    return f"Python {python} on {sys.platform}, {os.cpu_count()} cores, {size(memory)} memory, {cards}, torch {torch}"


def _remote(plan: Plan) -> str:
    """Ask the hub and URLs for what the plan names there; what lies on this machine has a row of its own."""
    check_sources(plan)
    return "all can be reached"


def _engine(plan: Plan, site: Site) -> str:
    if plan.dataset.answers:
        return "none needed: answers are given"
    if site.placement.endpoints:
        return "; ".join(_endpoint(endpoint) for endpoint in site.placement.endpoints)
    kind = site.engines.kind
    if kind != "xllamacpp":
        return f"{kind}, {len(site.engines.gpus) or site.engines.count or 1} of them; the run starts and stops them"
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


def _serves(plan: Plan, site: Site) -> Seen:
    if plan.draft is not None:
        return Seen("the draft is given; its export says which engines can load it")
    if site.placement.endpoints:
        return Seen("the endpoints' own affair; once they serve it: deepspec ask-engine SCORES")
    return serves(site.engines.kind, plan.train.draft)


def _states_engine(plan: Plan, site: Site) -> str:
    """Ask which version gives the states, as the run will."""
    told = plan.train.engine_version or plan.cache.engine_version
    found = told or engine_version([each.url for each in site.placement.endpoints])
    return f"vllm {found}; whether it gives what is wanted is proven when the stage begins"


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
    return f"{endpoint.url} ({_engine_name(endpoint.url)}) serves {endpoint.model}"


def _engine_name(url: str) -> str:
    """Return what an engine calls itself where it tells: llama.cpp, vLLM and SGLang do."""
    for path, key in (("props", "build_info"), ("version", "version"), ("get_server_info", "version")):
        with suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            answer = httpx.get(f"{url.removesuffix('/v1')}/{path}", timeout=TIMEOUT_SECONDS)
            return f"{path} says {answer.raise_for_status().json()[key]}"
    return "its version is not told"


def _key(endpoint: Endpoint) -> str | None:
    if endpoint.api_key_block is None:
        return secret(endpoint.api_key_env) if endpoint.api_key_env else None
    from tasks.keys import block_key  # Prefect takes a second to import

    return block_key(endpoint)
