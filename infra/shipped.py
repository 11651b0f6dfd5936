"""Where the installed packages lie, a checkout or site-packages, and what they hold for servers and clusters."""

import shutil
from importlib.resources import files
from pathlib import Path

INFRA = Path(str(files("infra")))
"""Image, compose file, Kubernetes, Slurm, S3 policy."""
DEPLOYMENTS = Path(str(files("deployments")))
"""Deployments, schedules, automations."""
PACKAGES = INFRA.parent
"""Folder from which Python imports flows: the checkout, or site-packages."""

SHIPPED = {
    INFRA: ("Dockerfile", "compose.yaml", "kubernetes/*.yaml", "s3/*.json", "slurm/*.sbatch"),
    DEPLOYMENTS: ("*.yaml",),
}
"""Package -> patterns of what people apply, submit or read by hand."""


def lay_out(folder: Path) -> list[Path]:
    """Copy everything that is shipped for servers and clusters into a folder; return where it lies.

    The paths below the folder are those of the checkout, so the commands of the docs work there.
    """
    found = [path for package, patterns in SHIPPED.items() for pattern in patterns for path in package.glob(pattern)]
    places = {path: folder / path.relative_to(PACKAGES) for path in sorted(found)}
    for path, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return list(places.values())
