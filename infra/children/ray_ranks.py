"""Several ranks of one job on a Ray cluster: `python -m infra.children.ray_ranks JOB.json ADDRESS`.

Ray starts the ranks where it has room, and again after a machine is lost: they go on at the newest checkpoint, so that
has to be in a store that all machines reach. What a rank prints comes here, events included.
"""

import sys
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer

from infra.children.child import Job, work

LOST_MACHINES = 3
"""How often the ranks are started again."""


def rank(told: dict[str, str]) -> None:
    """Be one rank; Ray has told torch who the others are."""
    work(Job.model_validate_json(told["job"]), get_context().get_world_rank())


def trainer(job: Job, storage: Path) -> TorchTrainer:
    """Return Ray's trainer for a job."""
    threads, on_gpu = job.placement.threads or 1, job.placement.device == "cuda"
    return TorchTrainer(
        rank,
        train_loop_config={"job": job.model_dump_json()},
        scaling_config=ScalingConfig(
            num_workers=job.placement.processes, use_gpu=on_gpu, resources_per_worker={"CPU": threads}
        ),
        run_config=RunConfig(storage_path=str(storage), failure_config=FailureConfig(max_failures=LOST_MACHINES)),
    )


def main(job_file: Path, address: str) -> None:
    """Run the job's ranks to their end."""
    job = Job.model_validate_json(job_file.read_bytes())
    ray.init(address=address, log_to_driver=True)
    trainer(job, job.placement.scratch / "ray").fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
