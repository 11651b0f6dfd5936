"""Write `requirements.lock` from the installed environment: exact pins, without local build tags.

Packages of `requirements-demo.lock` carry model files; they are installed without their dependencies and stay apart.
"""

import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_PINNED = {"deepspec", "pip", "uv", "wheel"}
MARKERS = {"triton": ";sys_platform=='linux'"}
"""Packages that there are for some platforms only."""


def pins(skipped: set[str]) -> list[str]:
    """Return `name==version`, and a marker where there is one, of everything installed but the skipped names."""
    found = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in distributions()}
    kept = {name: version.partition("+")[0] for name, version in found.items() if name not in skipped}
    return [f"{name}=={version}{MARKERS.get(name, '')}" for name, version in sorted(kept.items())]


def main() -> int:
    """Write the lock file."""
    demo = {line.partition("==")[0] for line in (ROOT / "requirements-demo.lock").read_text().split()}
    lines = pins(NOT_PINNED | demo)
    (ROOT / "requirements.lock").write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"requirements.lock: {len(lines)} packages\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
