"""How weights lie in memory: on CPU, column by column is quicker for the few rows that decoding multiplies."""

from torch import nn


def lay_out_for_decoding(model: nn.Module) -> None:
    """Store the weights of linear layers by columns where that helps; values and shapes stay as they are.

    Measured in fp32 on one thread: a product of 8 rows takes 0.55 to 0.8 of the time, one row 0.9 to 1.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.device.type == "cpu":
            module.weight.data = module.weight.data.t().contiguous().t()
