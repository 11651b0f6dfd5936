"""What each test file takes of the processor, with all processes that it waited for: `make test-costs`.

Work that a file builds for others, as a fixture of the whole session, counts for the file that asked first.
"""

import resource
from collections import defaultdict
from typing import Any

import pytest

FILES = 40
"""How many are shown, dearest first."""

SPENT: defaultdict[str, float] = defaultdict(float)
"""File -> seconds."""


def seconds() -> float:
    """Return what this process and its children have taken so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def charge(name: str) -> None:
    """Count what has been taken since the last time."""
    SPENT[name] += seconds() - sum(SPENT.values())


def pytest_collection_finish() -> None:
    charge("(collection)")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not hasattr(report, "node"):  # the process that ran it, not the one that workers report to
        charge(report.nodeid.split("::")[0])


def pytest_sessionfinish(session: pytest.Session) -> None:
    told: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["costs"] = dict(SPENT)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    SPENT.update(getattr(node, "workeroutput", {}).get("costs", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not hasattr(config, "workeroutput"):
        terminalreporter.section(f"{sum(SPENT.values()) / 60:.1f} minutes of the processor")
        for name, spent in sorted(SPENT.items(), key=lambda told: -told[1])[:FILES]:
            terminalreporter.write_line(f"{spent:8.1f} s  {name}")
