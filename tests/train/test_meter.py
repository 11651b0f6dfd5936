import torch

from deepspec.train.meter import Meter, peak_flops, step_flops
from tests.train.test_memory import task_for


def test_utilisation_is_the_share_of_the_peak():
    meter = Meter(peak=2e12, training=10.0, flops=5e12)
    assert meter.utilization == 0.25  # 0.5 of 2 TFLOP/s
    assert Meter(training=10.0, flops=5e12).utilization is None


def test_the_peak_is_known_by_the_name_of_the_device():
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A10G-like thing") is None


def test_a_step_counts_three_products_for_each_trained_matrix_and_two_for_the_head(site):
    """One sample of 10 tokens, 6 supervised slots in blocks of 3: by hand from the shapes of the tiny draft."""
    loop, _ = task_for(site)
    sums = {"supervised": torch.tensor([3.0, 2.0, 1.0])}
    shapes = {name: tuple(parameter.shape) for name, parameter in loop.task.model.trainable() if parameter.dim() == 2}
    block = sum(a * b for name, (a, b) in shapes.items() if "layers" in name)
    keys_values = sum(a * b for name, (a, b) in shapes.items() if "k_proj" in name or "v_proj" in name)
    fc, w2 = 32 * 96, 264 * 8
    confidence = 32 + 8
    trained = fc * 10 + keys_values * 10 + block * 6 + (w2 + confidence) * 6
    head = 264 * 32 * (2 * 6 + 2)  # forward and backward of 6 rows, and the target's of 2 positions
    assert step_flops(loop.task.model, 10, sums) == 2 * (3 * trained + head)
