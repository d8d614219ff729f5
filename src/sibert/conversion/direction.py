"""A weight as gain times direction: w = g v / |v|, of each row or as a whole."""

from typing import Literal

import torch
from torch import Tensor, nn

from sibert.ops.normalize import unit_rows

__all__ = ["Direction", "Granularity"]

Granularity = Literal["row", "matrix"]


class Direction(nn.Module):
    """w_r = g_r v_r / |v_r| for the rows r of a weight, or w = g v / |v| for all of it.

    Each v_r (or v) may be multiplied by any positive number and w stays what it is. A parametrisation in the sense of
    `torch.nn.utils.parametrize`, whose originals are the gains and v; rows are the first axis of v, whichever axis they
    are of w.

    Args:
        granularity: "row" or "matrix".
        axis: Of w that counts its rows: output neurons, tokens.
    """

    def __init__(self, granularity: Granularity, axis: int) -> None:
        super().__init__()
        self.granularity, self.axis = granularity, axis

    def forward(self, gain: Tensor, direction: Tensor) -> Tensor:
        """The weight.

        Args:
            gain: [R], or [] for granularity "matrix".
            direction: v [R, ...].
        """
        rows_RX = direction.flatten(1) if self.granularity == "row" else direction.reshape(1, -1)
        weight = (gain.reshape(-1, 1) * unit_rows(rows_RX)).reshape(direction.shape)
        return weight.movedim(0, self.axis)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Gains and v of a weight: v = w, so that its norm is one that training may begin with.

        A row of zeros has gain 0, and all its directions are as good: that of the row of ones is taken.
        """
        direction = weight.detach().movedim(self.axis, 0)
        rows_RX = direction.flatten(1) if self.granularity == "row" else direction.reshape(1, -1)
        norm_R1 = torch.linalg.vector_norm(rows_RX, dim=1, keepdim=True)
        ones_RX = torch.full_like(rows_RX, rows_RX.shape[1] ** -0.5)
        started_RX = torch.where(norm_R1 > 0, rows_RX, ones_RX)
        gain = norm_R1.squeeze(1) if self.granularity == "row" else norm_R1.reshape(())
        return gain.to(weight.dtype), started_RX.reshape(direction.shape).contiguous()

    def extra_repr(self) -> str:
        """For print(module)."""
        return f"granularity={self.granularity!r}, axis={self.axis}"
