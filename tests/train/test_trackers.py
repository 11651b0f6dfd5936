import pytest

from deepspec.errors import UnknownNameError
from tests.given.published.site import SMALL, Site


def test_tensorboard_hears_every_row_once(site: Site) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    site.train(SMALL.but(steps=4), "tracked", trackers=("tensorboard",))
    events = EventAccumulator(str(site.placement.scratch / "trackers" / "train-tracked")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("validation/tau")] == [0, 4]
    assert events.Scalars("pace/tokens_per_second")[-1].value > 0
    assert events.Scalars("pace/memory_bytes")[-1].value > 1e8


def test_a_tracker_that_accelerate_does_not_know_is_named(site: Site) -> None:
    with pytest.raises(UnknownNameError, match=r"tracker 'tensorbord'; known: .*tensorboard"):
        site.train(SMALL, "untracked", trackers=("tensorbord",))
