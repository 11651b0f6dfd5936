"""Pictures of speed, as PNG bytes."""

from deepspec.formats.speed import Speed
from deepspec.page.figure import drawing, png


def speed_by_batch(speed: Speed) -> bytes:
    """Return a plot of tokens per second, plain and speculative, by batch size."""
    figure, axis = drawing(1, 5)
    batches = [each.batch for each in speed.batches]
    axis.plot(batches, [each.tokens_per_second for each in speed.batches], "o-", label=speed.algorithm)
    axis.plot(batches, [each.plain_tokens_per_second for each in speed.batches], "o--", label="target alone")
    axis.set(xlabel="sequences decoded together", ylabel="tokens per second", ylim=(0, None), title="wall clock")
    axis.set_xticks(batches)
    axis.legend()
    axis.grid(alpha=0.3)
    return png(figure)


def speedup_by_load(speed: Speed) -> bytes:
    """Return a plot of the speed-up to expect by number of requests, with what was timed beside it."""
    figure, axis = drawing(1, 5)
    loads = [each.requests for each in speed.loads]
    for place, label in enumerate(("whole proposals", "scheduled")):
        axis.plot(loads, [each.speedups[place] for each in speed.loads], "o-", label=f"{label}, by replay")
    axis.plot([each.batch for each in speed.batches], [each.speedup for each in speed.batches], "kx", label="timed")
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set(
        xlabel="requests", ylabel="speed-up over plain decoding", ylim=(0, None), title="expected speed-up by load"
    )
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return png(figure)
