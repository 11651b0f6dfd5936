"""A picture of speed, as PNG or SVG bytes."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deepspec.formats.speed import Speed


def speed_by_batch(speed: Speed, form: str = "png") -> bytes:
    """Return a plot of tokens per second, plain and speculative, by batch size."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    batches = [each.batch for each in speed.batches]
    axis.plot(batches, [each.tokens_per_second for each in speed.batches], "o-", label=speed.algorithm)
    axis.plot(batches, [each.plain_tokens_per_second for each in speed.batches], "o--", label="target alone")
    axis.set(xlabel="sequences decoded together", ylabel="tokens per second", ylim=(0, None), title="wall clock")
    axis.set_xticks(batches)
    axis.grid(alpha=0.3)
    axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=130)
    return buffer.getvalue()
