"""One machine of a training on several: `python -m tests.soak.one_node JOB.json FOLDER`; prints what was published."""

import sys
from pathlib import Path

from deepspec.report import SilentReport
from infra.children.child import Job
from infra.children.stage import run_job

if __name__ == "__main__":
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    ref = run_job(job, Path(sys.argv[2]) / "job", SilentReport()).ref
    print(ref.content if ref else "published by another")
