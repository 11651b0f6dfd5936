"""One run of the stage in a process that a test can kill: `python -m tests.regenerate.one_run FOLDER URL…`."""

import sys
from pathlib import Path

from tests.given.engines.prompts import Bench, prompts

ROWS = 400


def main() -> None:
    bench = Bench(Path(sys.argv[1]))
    ref = bench.publish(prompts(ROWS))
    bench.regenerate(ref, bench.placement(*sys.argv[2:]))


if __name__ == "__main__":
    main()
