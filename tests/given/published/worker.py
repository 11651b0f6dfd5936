"""One rank of a training run: `python -m tests.given.published.worker JOB.json`, or under torchrun.

The first rank says each step and rests a moment after it, so that a test can strike there; it publishes in the end.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.errors import EXIT_CANCELLED, CancelledError
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.store import Store
from deepspec.train import narrator
from deepspec.train.run import run
from deepspec.train.spec import TrainSpec


class Saying:
    """A report that prints steps and lines; of ranks after the first, nothing."""

    def __init__(self, rest: float, aloud: bool) -> None:
        self.rest, self.aloud = rest, aloud

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        self.log(f"STEP {done}")
        time.sleep(self.rest)

    def log(self, message: str) -> None:
        if self.aloud:
            print(message, flush=True)

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        pass

    def figure(self, key: str, png: bytes) -> None:
        pass

    def markdown(self, key: str, text: str) -> None:
        pass

    def saving(self, seconds: float) -> None:
        pass


def main(job: dict[str, Any]) -> int:
    narrator.PROGRESS_SECONDS = 0.0
    first = os.environ.get("RANK", "0") == "0"
    store, scratch = Store(job["store"]), Path(job["scratch"])
    cache = open_artifact(store, ArtifactRef.model_validate(job["cache"]), scratch)
    out = Out(store, "draft", job["name"], {"target_cache": cache.ref}, scratch)
    spec, placement = TrainSpec.model_validate(job["spec"]), Placement.model_validate(job["placement"])
    report = Saying(job["rest"] if first else 0.0, first)
    try:
        counts = run(spec, {"target_cache": cache}, out, placement, report)
    except CancelledError as error:
        print(error, flush=True)
        return EXIT_CANCELLED
    if first:
        print("PUBLISHED", out.publish(spec, 1, counts).model_dump_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
