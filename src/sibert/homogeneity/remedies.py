"""What to do about an operation that forbids a rescaling."""

from .operation import Equation, Kind

SOFTMAX = "normalise ReLU scores instead (sibert.ops.relu_attention), or give it cosines of queries and keys"
ACTIVATION = "use ReLU, which is positively homogeneous"
BIAS = "drop the bias, normalise what follows, or scale the bias with the same degree as what it is added to"
SUM = "normalise both terms, or let both have the same number of matrices behind the last normalisation"
REMEDIES = {
    **dict.fromkeys(["softmax", "_softmax", "scaled_dot_product_attention", "log_softmax", "_log_softmax"], SOFTMAX),
    **dict.fromkeys(
        ["gelu", "silu", "mish", "tanh", "elu", "celu", "selu", "softplus", "hardswish", "relu6"], ACTIVATION
    ),
    **dict.fromkeys(["hardtanh", "sigmoid", "hardsigmoid"], ACTIVATION),
    **dict.fromkeys(["linear", "addmm", "conv1d", "conv2d", "conv3d", "layer_norm", "native_layer_norm"], BIAS),
    **dict.fromkeys(["convolution", "baddbmm", "group_norm", "conv_transpose1d", "conv_transpose2d"], BIAS),
    **dict.fromkeys(["add", "sub", "rsub", "where", "maximum", "minimum"], SUM),
    "batch_norm": "in evaluation, running statistics do not scale: fold them, or analyse the model in training mode",
    "cross_entropy_loss": "normalise the logits, or leave the head out of what is rescaled",
    "glu": "use a gate that is positively homogeneous (ReLU), or normalise its argument",
    "output": "normalise at the end of what is rescaled, or leave the last layers out of it",
}
REMEDIES["_native_batch_norm_legit_no_training"] = REMEDIES["batch_norm"]


def remedy(equation: Equation) -> str:
    """One sentence for one equation."""
    if equation.kind is Kind.EPSILON:
        return "set the epsilon to 0 (sibert.ops.normalize has a layer norm that is exact without one)"
    if equation.kind is Kind.SATURATION:
        return "mask with -inf"
    if equation.kind is Kind.UNKNOWN:
        return "write a rule for it (docs: how to add a rule)"
    return REMEDIES.get(equation.place.operation, "keep what is rescaled away from it, by a normalisation")
