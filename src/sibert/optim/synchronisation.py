"""Where may the host read a number without waiting for a device?"""

import torch

__all__ = ["host_may_read"]


def host_may_read(device: torch.device) -> bool:
    """Say whether reading a tensor's value costs nothing but the read.

    On the CPU a value is there as soon as the operation that makes it returns, so the host may look at it and branch.
    On any other device a look waits until all queued work is done; there the decisions of a step are taken by tensors.

    Args:
        device: Where the tensor lives.

    Returns:
        True for the CPU.
    """
    return device.type == "cpu"
