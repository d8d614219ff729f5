"""An initialisation that knows how frequent each token is.

Shape suffixes: V = vocabulary, D = hidden size.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sibert.models.configuration_sibert import SibertConfig

__all__ = ["initialize_from_frequencies"]


@torch.no_grad()
def initialize_from_frequencies(model: PreTrainedModel, log_targets_V: Tensor, inputs_V: Tensor) -> None:
    """Let a masked language model begin with the unigram distribution, and its token rows at their equilibrium norms.

    **Decoder bias** b_v = log_targets_v, for any model.

    **Norms of token rows** in proportion to inputs_v^(1/4), where the norm of a row has no influence on the output
    (`invariance` "matrix" and "row"). There, the norm r_v of a row obeys r_v^4 -> eta sigma_v^2 / (2 lambda) with
    sigma_v^2 the mean square of its gradient at norm 1. A row gets a gradient when its token occurs, so sigma_v^2 is
    in proportion to its frequency, and rows that started with equal norms would take about 1 / (4 eta lambda) steps to
    get to these norms. At equilibrium every row turns by sqrt(2 eta lambda) per step on average: a rare token turns
    seldom, and then by more. That is what Adam does for rare tokens by its second moments; here the norm is the memory.

    Args:
        model: With a decoder that has a bias.
        log_targets_V: Log frequency of each token among the targets, up to a constant.
        inputs_V: Frequency of each token among the inputs, > 0.

    References:
        The equilibrium norm: arXiv 2305.17212, and Theorem 4.5 of arXiv 2202.00980.
    """
    model.get_output_embeddings().bias.copy_(log_targets_V)
    config = model.config
    if isinstance(config, SibertConfig) and config.invariance != "joint":
        rows_VD = model.get_input_embeddings().weight
        factor_V = inputs_V.to(rows_VD) ** 0.25
        rows_VD.mul_((factor_V / factor_V.square().mean().sqrt())[:, None])
