"""Work that is launched kernel by kernel once, recorded the second time, and replayed from then on: a CUDA graph.

A pass of a 4B target over one token is some two thousand kernels of a few microseconds; a host needs longer to start
them one after another than a card to run them. A recorded pass is started as a whole.
"""

from collections.abc import Callable
from typing import Any

import torch

from deepspec.kernels import stream_beside


class Recorder:
    """Records work on a device, or does it each time.

    Args:
        active: whether to record; a CPU has nothing to record.
        say: told once why work cannot be recorded.
        device: that works: a process's current card may be another one, whose recording would be empty.
    """

    def __init__(self, active: bool, say: Callable[[str], None], device: torch.device) -> None:
        """Share one pool of memory among all that is recorded: no two of them run at once."""
        self.active, self._device = active, device
        self._say = say
        self._pool: Any = torch.cuda.graph_pool_handle() if active else None

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Return recorded work, which has not been done by that; None where it cannot be recorded."""
        graph, stream = torch.cuda.CUDAGraph(), stream_beside(self._device, "recording")
        try:
            with (
                torch.cuda.device(self._device),
                torch.cuda.stream(torch.cuda.current_stream(self._device)),  # given back when recording fails, too
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                work()
        except RuntimeError as error:  # work that waits for the device: what is read decides what is done
            self.active = False
            reason = str(error).splitlines()[0]
            self._say(f"decoding starts every kernel by itself, since a pass could not be recorded: {reason}")
            return None
        return graph


class Replayed:
    """One piece of work, whose inputs and outputs stay where they are."""

    def __init__(self, work: Callable[[], None], recorder: Recorder) -> None:
        """Do nothing yet."""
        self._work, self._recorder = work, recorder
        self._done = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do the work: the first time as it is, so that whatever is set up once is set up."""
        if self._done and self._graph is None and self._recorder.active:
            self._graph = self._recorder.record(self._work)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._work()
        self._done = True
