from deepspec.algorithms import ALGORITHMS
from deepspec.algorithms.base import PassWork
from deepspec.formats.recipe import Objective
from deepspec.records.batch import collate
from deepspec.watch.meter import Meter, peak_flops, step_flops
from tests.given.drafts.learning import record, tiny
from tests.given.published.site import Site
from tests.train.test_memory import task_for


def test_utilisation_is_the_share_of_the_peak() -> None:
    meter = Meter(peak=2e12, training=10.0, flops=5e12)
    assert meter.utilization == 0.25  # 0.5 of 2 TFLOP/s
    assert Meter(training=10.0, flops=5e12).utilization is None


def test_a_steps_processor_seconds_are_those_of_all_steps_over_their_number() -> None:
    assert Meter(processor=6.0, steps=4).step_cpu_seconds == 1.5
    assert Meter().step_cpu_seconds is None


def test_the_peak_is_known_by_the_name_of_the_device() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A10G-like thing") is None


def test_a_step_counts_three_products_for_each_trained_matrix_and_two_for_the_head(site: Site) -> None:
    """One sample of 10 tokens, two blocks of 3 with 5 supervised slots: by hand from the shapes of the tiny draft."""
    loop, _ = task_for(site)
    work = PassWork(context=10, slots=6, pairs=2 * 9 + 3 * (4 + 7), rows=5, targets=4)
    shapes = {name: tuple(parameter.shape) for name, parameter in loop.task.model.trainable() if parameter.dim() == 2}
    block = sum(a * b for name, (a, b) in shapes.items() if "layers" in name)
    keys_values = sum(a * b for name, (a, b) in shapes.items() if "k_proj" in name or "v_proj" in name)
    fc, w2 = 32 * 96, 264 * 8
    confidence = 32 + 8
    trained = fc * 10 + keys_values * 10 + block * 6 + (w2 + confidence) * 5
    attention = 2 * 51 * 32  # a score and a reading of each pair, over the 32 sizes of all heads
    head = 264 * 32 * (2 * 5 + 4)  # forward and backward of 5 rows, and the target's of 4 positions
    assert step_flops(loop.task.model, work) == 2 * (3 * (trained + attention) + head)
    alone = step_flops(loop.task.model, work, held=False)  # without the logits of the four target positions
    assert step_flops(loop.task.model, work) - alone == 2 * 4 * loop.task.model.lm_head.weight.numel()


def test_work_is_counted_without_padding() -> None:
    """Samples of 4 and 2 tokens in rows of 4; every token is the target's."""
    batch = collate([record("a", 4, range(4)), record("b", 2, range(2))])
    blocks = ALGORITHMS["dspark"].supervise(tiny().config, Objective(num_anchors=9), batch, [0, 1]).work
    assert blocks == PassWork(context=6, slots=4 * 4, pairs=4 * (0 + 1 + 2 + 0) + 4 * 16, rows=3 + 2 + 1 + 1, targets=4)
    eagle = ALGORITHMS["eagle3"].supervise(tiny("eagle3").config, Objective(ttt_length=2), batch, [0, 1]).work
    assert eagle == PassWork(context=6, slots=12, pairs=2 * (10 + 3) + 6, rows=2 + 1, targets=2)
