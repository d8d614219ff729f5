"""The gradient of a table that is both looked up and, as a decoder, multiplied by: one tensor instead of two.

A lookup has, for torch, a gradient of the size of the table, nearly all of it zeros. Autograd keeps the decoder's
gradient, which comes first, until that of the lookup is there, and adds them: two tensors of the size of the largest
parameter, or three, at the moment when all other gradients exist. Here the rows that were looked up are added to the
decoder's gradient in place. The sums are the same, bit for bit: occurrences of a row are added up in the same order.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TiedTable"]


class TiedTable:
    """One forward pass's uses of a table: a lookup, and at most one as a decoder of what became of the lookup.

    Backward reaches the decoder first, since its input depends on the lookup. First derivatives only.

    Args:
        table_VD: The table.
    """

    def __init__(self, table_VD: Tensor) -> None:
        self.table_VD = table_VD
        self.pending_VD: Tensor | None = None

    def rows(self, ids: Tensor) -> Tensor:
        """Look rows up.

        Args:
            ids: Numbers of rows, of any shape.

        Returns:
            The rows, [*ids.shape, D].
        """
        return cast(Tensor, _Lookup.apply(ids, self.table_VD, self))  # type: ignore[no-untyped-call]

    def decoder(self) -> Tensor:
        """Give the table [V, D] for its use as a decoder, whose gradient waits for that of the lookup."""
        return cast(Tensor, _Decoder.apply(self.table_VD, self))  # type: ignore[no-untyped-call]


class _Decoder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, uses: TiedTable) -> Tensor:
        ctx.uses = uses
        return table_VD.view_as(table_VD)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_VD: Tensor) -> tuple[None, None]:
        assert ctx.uses.pending_VD is None
        ctx.uses.pending_VD = grad_VD
        return None, None


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, table_VD: Tensor, uses: TiedTable) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.uses, ctx.size = uses, len(table_VD)
        return F.embedding(ids, table_VD)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_XD: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = ctx.saved_tensors
        total_VD, ctx.uses.pending_VD = ctx.uses.pending_VD, None
        if total_VD is None:
            return None, torch.ops.aten.embedding_dense_backward(grad_XD, ids, ctx.size, -1, False), None
        found_U, inverse = torch.unique(ids, return_inverse=True)
        rows_UD = torch.ops.aten.embedding_dense_backward(grad_XD, inverse, len(found_U), -1, False)
        return None, total_VD.index_add_(0, found_U, rows_UD), None
