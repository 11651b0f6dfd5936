"""Metric rows to TensorBoard, Weights & Biases or any other tracker that accelerate knows, as they come."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from deepspec.errors import SpecError, UnknownNameError
from deepspec.train.loop import Loop
from deepspec.watch.meter import peak_memory


class Trackers:
    """Open trackers; only the first rank has any.

    Args:
        names: as accelerate calls them: `tensorboard`, `wandb`, `mlflow`, ….
        run: name of the run.
        folder: local, for trackers that write files.

    Raises:
        UnknownNameError: accelerate knows no such tracker.
        SpecError: its package is not installed.
    """

    def __init__(self, names: Sequence[str], run: str, folder: Path) -> None:
        """Open them; nothing is sent yet."""
        self._sent = 0
        self._open = [_opened(name, run, folder) for name in names]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let them write what they hold."""
        for tracker in self._open:
            tracker.finish()

    def begin(self, loop: Loop) -> None:
        """Tell the spec; rows that a resumed run brings along were sent before."""
        self._sent = len(loop.progress.rows)
        for tracker in self._open:
            tracker.store_init_configuration({"spec": loop.task.spec.model_dump_json()})

    def __call__(self, loop: Loop) -> None:
        """Send the rows that are new, and the pace."""
        rows, self._sent = loop.progress.rows[self._sent :], len(loop.progress.rows)
        for tracker in self._open:
            for row in rows:
                values = {f"{row['split']}/{name}": v for name, v in row.items() if name not in ("split", "step")}
                tracker.log(values, step=row["step"])
            tracker.log(_pace(loop), step=loop.progress.step)


def _pace(loop: Loop) -> dict[str, float]:
    """Return throughput, data wait, memory and, where it is known, the share of the device's peak."""
    found = {
        "pace/tokens_per_second": loop.meter.tokens_per_second,
        "pace/samples_per_second": loop.meter.samples_per_second,
        "pace/data_wait_share": loop.data_wait_share,
        "pace/memory_bytes": float(peak_memory(loop.task.device)),
    }
    share = loop.meter.utilization
    return found if share is None else {**found, "pace/mfu": share}


def _opened(name: str, run: str, folder: Path) -> Any:
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UnknownNameError("tracker", name, LOGGER_TYPE_TO_CLASS)
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name not in {str(each) for each in get_available_trackers()}:
        raise SpecError(f"tracker {name}: its package is not installed; pip install it, or leave --tracker {name} out")
    tracker = kind(run, logging_dir=folder) if kind.requires_logging_directory else kind(run)
    tracker.start()
    return tracker
