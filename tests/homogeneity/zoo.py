"""Small models with rescaling symmetries that are known by hand: what `analyze` must find, no more and no less.

Each entry has a one-line proof. `exact` and `epsilon` are the dimensions of the space of symmetries without and with
those that only epsilons break (and masks that stand for -inf). Names in `holds` may be scaled together, or with the
exponents that are given, exactly or up to epsilon; those in `breaks` may not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Claim = str | Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A model and what is true of it.

    Attributes:
        name: Of the model.
        build: The module and its inputs.
        proof: One line.
        exact: Dimension of the space of exact symmetries.
        epsilon: Dimension with those up to epsilon; None = the same.
        holds: Symmetries.
        breaks: What is none.
        observed: What computing finds and no rule proves.
        slices: As for `analyze`.
        options: More arguments of `analyze`.
    """

    name: str
    build: Callable[[], tuple[Any, ...]]
    proof: str
    exact: int
    epsilon: int | None = None
    holds: Sequence[Claim] = ()
    breaks: Sequence[Claim] = ()
    observed: Sequence[str] = ()
    slices: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class Function(nn.Module):
    """Parameters of given shapes and a function of them and of inputs.

    Args:
        function: Of the module and the inputs.
        shapes: By the names of the parameters.
    """

    def __init__(self, function: Callable[..., Any], **shapes: Sequence[int]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(tuple(shape))))

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


class Residual(nn.Module):
    """x + branch(x), or shortcut(x) + branch(x)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


def x(*shape: int) -> Tensor:
    """An input without symmetries of its own: negative and positive entries, no zeros."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) + 0.1


def ids(*shape: int, high: int = 7) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


def linear(rows: int, columns: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(columns, rows, bias=bias)


def exact_norm(kind: Callable[..., nn.Module], *sizes: Any, affine: bool = False) -> nn.Module:
    """A norm without epsilon; batch norm insists on a positive one, so it has the smallest."""
    if kind is nn.LayerNorm:
        return nn.LayerNorm(*sizes, eps=0.0, elementwise_affine=affine)
    return kind(*sizes, eps=0.0, affine=affine)


N = 5


def layer_norm(affine: bool = False) -> nn.Module:
    return exact_norm(nn.LayerNorm, N, affine=affine)


def relu_attention(m: Any, inputs: Tensor) -> Tensor:
    q, k, v = inputs @ m.q, inputs @ m.k, inputs @ m.v
    scores = torch.relu(q @ k.transpose(-1, -2))
    total = scores.sum(-1, keepdim=True)
    positive = total > 0
    weights = scores * torch.where(positive, torch.where(positive, total, 1.0).reciprocal(), 0.0)
    return weights @ v


def softmax_attention(m: Any, inputs: Tensor) -> Tensor:
    q, k, v = inputs @ m.q + m.bq, inputs @ m.k + m.bk, inputs @ m.v + m.bv
    return F.softmax(q @ k.transpose(-1, -2) / 5**0.5, -1) @ v


def rotary(t: Tensor) -> Tensor:
    half = t.shape[-1] // 2
    angle = torch.arange(t.shape[-2])[:, None] / 10.0 ** torch.arange(half)
    cos, sin = angle.cos(), angle.sin()
    a, b = t[..., :half], t[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def grouped_query_attention(m: Any, inputs: Tensor) -> Tensor:
    q = (inputs @ m.q).unflatten(-1, (4, 2)).transpose(1, 2)
    k = (inputs @ m.k).unflatten(-1, (2, 2)).transpose(1, 2).repeat_interleave(2, 1)
    v = (inputs @ m.v).unflatten(-1, (2, 2)).transpose(1, 2).repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)


def additive_mask_attention(minimum: float) -> Callable[..., Tensor]:
    """Normalised ReLU attention does not need its mask before the ReLU; -inf and finfo.min are told apart."""

    def attend(m: Any, inputs: Tensor) -> Tensor:
        scores = (inputs @ m.q) @ (inputs @ m.k).transpose(-1, -2)
        later = torch.triu(torch.ones(scores.shape[-1], scores.shape[-1], dtype=torch.bool), 1)
        scores = torch.relu(scores + torch.where(later, minimum, 0.0))
        return scores / scores.sum(-1, keepdim=True).clamp_min(1e-30) @ inputs

    return attend


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(3, 4, batch_first=True)
        self.head = linear(3, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.layer_norm(self.head(self.cell(inputs)[0]), (3,), eps=0.0)


class Tied(nn.Module):
    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, N)
        self.decoder = linear(7, N)
        self.decoder.weight = self.embedding.weight
        self.normalised = normalised

    def forward(self, tokens: Tensor) -> Tensor:
        h = F.layer_norm(self.embedding(tokens), (N,), eps=0.0)
        if self.normalised:
            return h @ (self.decoder.weight / self.decoder.weight.norm(dim=-1, keepdim=True)).T
        return self.decoder(h)


def product_logistic(m: Any, inputs: Tensor) -> Tensor:
    """Example 1.1 of arXiv 2202.00980: logistic regression in which a weight is a product of many."""
    return F.softplus(-(m.u.prod() * m.v.prod() * inputs)).mean()


def factorisation(m: Any) -> Tensor:
    """Example 1.2 of arXiv 2202.00980: |A B - Y|^2."""
    target = torch.arange(16.0).reshape(4, 4)
    return (m.a @ m.b - target).square().sum()


def mlp(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def rms_norm_by_hand(m: Any, t: Tensor) -> Tensor:
    h = t @ m.w
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def cosine_head(m: Any, t: Tensor) -> Tensor:
    return m.s * (F.normalize(t @ m.w) @ F.normalize(m.u).T)


def geometric_mean(m: Any, t: Tensor) -> Tensor:
    return (t.abs() @ m.w.abs()).sqrt() / (t.abs() @ m.u.abs()).pow(0.25)


def sign_and_arg_max(m: Any, t: Tensor) -> Tensor:
    return torch.sign(t @ m.w) * t[:, :1] + F.one_hot((t @ m.u).argmax(-1), N)


def gated(m: Any, t: Tensor) -> Tensor:
    return torch.where(t @ m.g > 0, t @ m.w, t @ m.u)


def embedded(m: Any, tokens: Tensor) -> Tensor:
    return F.layer_norm(m.e[tokens] + m.p[: tokens.shape[1]], (N,), eps=0.0)


def at_unit_scale(m: Any, t: Tensor) -> Tensor:
    h = t @ m.w
    return torch.ldexp(h, -torch.frexp(h.abs().amax(-1, keepdim=True))[1])


NORM = layer_norm
ZOO = [
    # Feed-forward networks --------------------------------------------------------------------------------------
    Entry(
        "mlp",
        lambda: (mlp(linear(6, 4), nn.ReLU(), linear(3, 6)), x(2, 4)),
        "W2 ReLU(W1 x) has degree a1 + a2",
        1,
        holds=[{"0.weight": 1, "2.weight": -1}],
        breaks=["0.weight", "2.weight", "*"],
    ),
    Entry(
        "mlp with biases",
        lambda: (mlp(linear(6, 4, True), nn.ReLU(), linear(3, 6, True)), x(2, 4)),
        "b1 goes with W1; b2 stands alone, so a(b2) = 0",
        1,
        holds=[{"0.weight": 1, "0.bias": 1, "2.weight": -1}],
        breaks=[{"0.weight": 1, "2.weight": -1}, "2.bias"],
    ),
    Entry(
        "mlp with norm at the end",
        lambda: (mlp(linear(6, 4, True), nn.ReLU(), linear(N, 6, True), NORM()), x(2, 4)),
        "degree a1 + a2 = a(b2) is normalised away; b1 goes with W1",
        2,
        holds=[["2.weight", "2.bias"], {"0.weight": 1, "0.bias": 1, "2.weight": -1}, {"0": 1, "2.bias": 1}],
        breaks=["2.weight", "0.weight", "*"],
    ),
    Entry(
        "gelu",
        lambda: (mlp(linear(6, 4), nn.GELU(), linear(N, 6), NORM()), x(2, 4)),
        "GELU is not homogeneous, so a1 = 0; W2 is normalised away",
        1,
        holds=["2.weight"],
        breaks=["0.weight"],
    ),
    Entry(
        "leaky relu",
        lambda: (mlp(linear(6, 4), nn.LeakyReLU(0.2), linear(N, 6), NORM()), x(2, 4)),
        "leaky ReLU is positively homogeneous",
        2,
        holds=["0.weight", "2.weight"],
    ),
    Entry(
        "relu squared",
        lambda: (Function(lambda m, t: F.relu(t @ m.w).square() @ m.u, w=(4, 6), u=(6, 3)), x(2, 4)),
        "ReLU(W x)^2 has degree 2 a_w",
        1,
        holds=[{"w": 1, "u": -2}],
        breaks=[{"w": 1, "u": -1}],
    ),
    Entry(
        "swiglu",
        lambda: (Function(lambda m, t: (F.silu(t @ m.g) * (t @ m.w)) @ m.u, g=(4, 6), w=(4, 6), u=(6, 3)), x(2, 4)),
        "the gate goes through SiLU, so a_g = 0; w and u as in a ReLU network",
        1,
        holds=[{"w": 1, "u": -1}],
        breaks=["g", {"g": 1, "u": -1}],
    ),
    Entry(
        "reglu",
        lambda: (Function(lambda m, t: (F.relu(t @ m.g) * (t @ m.w)) @ m.u, g=(4, 6), w=(4, 6), u=(6, 3)), x(2, 4)),
        "a_g + a_w + a_u = 0",
        2,
        holds=[{"g": 1, "u": -1}, {"w": 1, "u": -1}, {"g": 1, "w": -1}],
        breaks=["g"],
    ),
    Entry(
        "glu",
        lambda: (mlp(linear(6, 4), nn.GLU(), linear(3, 3)), x(2, 4)),
        "both halves of one matrix scale together, and the gate may not",
        0,
        breaks=["0.weight", {"0.weight": 1, "2.weight": -1}],
    ),
    Entry(
        "prelu",
        lambda: (mlp(linear(6, 4), nn.PReLU(), linear(3, 6)), x(2, 4)),
        "the slope is compared with 1",
        1,
        holds=[{"0.weight": 1, "2.weight": -1}],
        breaks=["1.weight"],
    ),
    Entry(
        "maxout",
        lambda: (Function(lambda m, t: torch.maximum(t @ m.a, t @ m.b) @ m.u, a=(4, 6), b=(4, 6), u=(6, 3)), x(2, 4)),
        "a maximum needs equal degrees",
        1,
        holds=[{"a": 1, "b": 1, "u": -1}],
        breaks=[{"a": 1, "u": -1}],
    ),
    # Normalisation ----------------------------------------------------------------------------------------------
    Entry(
        "batch norm in training",
        lambda: (mlp(linear(N, 4, True), nn.BatchNorm1d(N, eps=1e-30), nn.ReLU(), linear(3, N)).train(), x(9, 4)),
        "W is normalised away, its bias is constant over the batch; gain and bias as in a ReLU network",
        2,
        3,
        holds=["0.bias", "0.weight", {"1": 1, "3.weight": -1}],
        breaks=["1.weight", "3.weight"],
    ),
    Entry(
        "batch norm in evaluation",
        lambda: (mlp(linear(N, 4, True), nn.BatchNorm1d(N), nn.ReLU(), linear(3, N)).eval(), x(9, 4)),
        "an affine map with statistics that do not scale",
        1,
        holds=[{"1.weight": 1, "1.bias": 1, "3.weight": -1}],
        breaks=["0.weight", "0.bias"],
    ),
    Entry(
        "layer norm with epsilon",
        lambda: (mlp(linear(N, 4), nn.LayerNorm(N, elementwise_affine=False)), x(2, 4)),
        "N(c x) = N(x) for epsilon 0 only",
        0,
        1,
        holds=["0.weight"],
    ),
    Entry(
        "affine layer norm",
        lambda: (mlp(linear(N, 4), exact_norm(nn.LayerNorm, N, affine=True), nn.ReLU(), linear(3, N)), x(2, 4)),
        "gain and bias have degree 1 together",
        2,
        holds=["0.weight", {"1": 1, "3.weight": -1}],
        breaks=["1.weight", "1.bias"],
    ),
    Entry(
        "scalar shift before layer norm",
        lambda: (Function(lambda m, t: F.layer_norm(t @ m.w + m.s, (N,), eps=0.0), w=(4, N), s=(1,)), x(2, 4)),
        "what is the same for all features is subtracted with the mean",
        2,
        holds=["w", "s"],
    ),
    Entry(
        "vector bias before layer norm",
        lambda: (Function(lambda m, t: F.layer_norm(t @ m.w + m.s, (N,), eps=0.0), w=(4, N), s=(N,)), x(2, 4)),
        "a bias that differs between features has to scale with W",
        1,
        holds=[["w", "s"]],
        breaks=["s", "w"],
    ),
    Entry(
        "group norm",
        lambda: (mlp(nn.Conv1d(2, 6, 3, bias=False), nn.GroupNorm(3, 6, eps=0.0), nn.ReLU()), x(2, 2, 7)),
        "each group of channels is normalised; its gain is 1 at first but scales the output",
        1,
        holds=["0.weight"],
        breaks=["1.weight", "1"],
    ),
    Entry(
        "instance norm forgets the bias",
        lambda: (mlp(nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3, eps=1e-30)), x(2, 2, 7)),
        "a bias of a channel is constant over its positions",
        1,
        2,
        holds=["0.bias", "0.weight"],
    ),
    Entry(
        "rms norm",
        lambda: (mlp(linear(N, 4), nn.RMSNorm(N, eps=0.0), linear(3, N)), x(2, 4)),
        "W1 is normalised away; the gain goes with W2",
        2,
        holds=["0.weight", {"1.weight": 1, "2.weight": -1}],
        breaks=["1.weight"],
    ),
    Entry(
        "layer norm by hand",
        lambda: (
            Function(
                lambda m, t: (lambda y: y / (y.square().mean(-1, keepdim=True)).sqrt())(
                    (lambda h: h - h.mean(-1, keepdim=True))(t @ m.w + m.s)
                ),
                w=(4, N),
                s=(1,),
            ),
            x(2, 4),
        ),
        "x - mean(x) ignores s; the quotient has degree a_w - 2 a_w / 2",
        2,
        holds=["w", "s"],
    ),
    Entry(
        "rms norm by hand with epsilon",
        lambda: (
            Function(rms_norm_by_hand, w=(4, N)),
            x(2, 4),
        ),
        "the constant is added to a mean of squares",
        0,
        1,
        holds=["w"],
    ),
    Entry(
        "a constant that is no epsilon",
        lambda: (Function(lambda m, t: (t @ m.w + 1e-6).sum(-1), w=(4, N)), x(2, 4)),
        "what it is added to has both signs, so it is a shift",
        0,
        breaks=["w"],
    ),
    Entry(
        "weight normalisation",
        lambda: (torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, N, bias=False)), x(2, 4)),
        "w = g v / |v|: v has no scale",
        1,
        holds=["parametrizations.weight.original1"],
        breaks=["parametrizations.weight.original0"],
    ),
    Entry(
        "cosine head",
        lambda: (
            Function(cosine_head, w=(4, N), u=(3, N), s=()),
            x(2, 4),
        ),
        "both factors are unit vectors; the scale is not",
        0,
        2,
        holds=["w", "u"],
        breaks=["s"],
    ),
    Entry(
        "siamese net with cosine",
        lambda: (
            Function(lambda m, a, b: F.cosine_similarity(a @ m.w, b @ m.w, eps=0.0), w=(4, N)),
            x(2, 4),
            x(2, 4).flip(0),
        ),
        "a cosine does not depend on lengths, and the weights are shared",
        1,
        holds=["w"],
    ),
    Entry(
        "temperature under a softmax",
        lambda: (Function(lambda m, t: F.softmax(t @ m.w / m.t, -1), w=(4, N), t=()), x(2, 4)),
        "w / t has degree 0 where both scale alike",
        1,
        holds=[["w", "t"]],
        breaks=["w", "t"],
    ),
    # Residual networks ------------------------------------------------------------------------------------------
    Entry(
        "prenorm residual net",
        lambda: (
            mlp(linear(N, 4), Residual(mlp(NORM(), linear(N, N))), Residual(mlp(NORM(), linear(N, N))), NORM()),
            x(2, 4),
        ),
        "every writer of the stream has the degree of the first",
        1,
        holds=["*"],
        breaks=["0.weight", "1.branch.1.weight"],
    ),
    Entry(
        "prenorm net with a bare shortcut",
        lambda: (
            mlp(linear(N, 4), Residual(mlp(NORM(), nn.ReLU(), linear(N, N)), linear(N, N)), NORM()),
            x(2, 4),
        ),
        "the shortcut has degree a0 + as, the branch ab: scaling all alike breaks it",
        2,
        holds=[{"0.weight": 1, "1.branch.2.weight": 1}, {"1.shortcut.weight": 1, "1.branch.2.weight": 1}],
        breaks=["*"],
    ),
    Entry(
        "prenorm net with a normalised shortcut",
        lambda: (
            mlp(linear(N, 4), Residual(mlp(NORM(), nn.ReLU(), linear(N, N)), mlp(NORM(), linear(N, N))), NORM()),
            x(2, 4),
        ),
        "both ends of the block have one matrix behind a norm",
        2,
        holds=["*", "0.weight", ["1.branch.2.weight", "1.shortcut.1.weight"]],
        breaks=["1.branch.2.weight"],
    ),
    Entry(
        "postnorm residual net",
        lambda: (
            mlp(linear(N, 4), NORM(), Residual(mlp(linear(N, N), NORM())), Residual(mlp(linear(N, N), NORM()))),
            x(2, 4),
        ),
        "each matrix is followed by a norm of its own",
        3,
        holds=["0.weight", "2.branch.0.weight", "3.branch.0.weight"],
    ),
    Entry(
        "prenorm residual net with affine norms",
        lambda: (
            mlp(linear(N, 4), Residual(mlp(NORM(True), linear(N, N))), Residual(mlp(NORM(True), linear(N, N))), NORM()),
            x(2, 4),
        ),
        "each affine part goes against the matrix behind it, whose product with it has the degree of the stream",
        3,
        holds=[
            {"1.branch.0": 1, "1.branch.1.weight": -1},
            ["0.weight", "1.branch.1.weight", "2.branch.1.weight"],
        ],
        breaks=["*", "1.branch.0", "1.branch.0.weight"],
    ),
    Entry(
        "postnorm residual net with affine norms",
        lambda: (
            mlp(linear(N, 4), NORM(True), Residual(mlp(linear(N, N), NORM(True))), NORM(True)),
            x(2, 4),
        ),
        "each matrix is followed by a norm; affine parts that are added scale together; the last is the output",
        3,
        holds=["0.weight", "2.branch.0.weight", ["1", "2.branch.1"]],
        breaks=["1", "2.branch.1", "3"],
    ),
    Entry(
        "postnorm after the addition",
        lambda: (mlp(NORM(), Residual(linear(N, N)), NORM()), x(2, N)),
        "x of degree 0 is added to W x",
        0,
        breaks=["1.branch.weight"],
    ),
    Entry(
        "branches of unequal degree",
        lambda: (
            Function(
                lambda m, t: F.layer_norm(F.relu(t @ m.a) @ m.b + t @ m.c, (N,), eps=0.0), a=(4, 6), b=(6, N), c=(4, N)
            ),
            x(2, 4),
        ),
        "a + b = c: half a power each will do",
        2,
        holds=[{"a": "1/2", "b": "1/2", "c": 1}, {"a": 1, "b": -1}],
        breaks=["*"],
    ),
    # Attention --------------------------------------------------------------------------------------------------
    Entry(
        "softmax attention",
        lambda: (
            Function(softmax_attention, q=(4, N), k=(4, N), v=(4, N), bq=(N,), bk=(N,), bv=(N,)),
            x(2, 3, 4),
        ),
        "queries against keys; the bias of the keys is constant under the softmax",
        2,
        holds=[{"q": 1, "bq": 1, "k": -1}, "bk"],
        breaks=["q", "bq", "v", {"q": 1, "k": -1}],
    ),
    Entry(
        "normalised ReLU attention",
        lambda: (Function(relu_attention, q=(4, N), k=(4, N), v=(4, N)), x(2, 3, 4)),
        "scores are divided by their sum: q and k have no scale",
        2,
        holds=["q", "k"],
        breaks=["v"],
    ),
    Entry(
        "fused projection of torch's attention",
        lambda: (
            Function(
                lambda m, t: F.scaled_dot_product_attention(*(t @ m.w).chunk(3, -1)) @ m.o, w=(4, 3 * N), o=(N, 3)
            ),
            x(2, 3, 4),
        ),
        "its blocks of columns scale against each other",
        2,
        holds=[{"w[:, 0:5]": 1, "w[:, 5:10]": -1}, {"w[:, 10:15]": 1, "o": -1}],
        breaks=["w[:, 0:5]"],
        slices={"w": ("blocks", 1, 3)},
    ),
    Entry(
        "query-key normalisation",
        lambda: (
            Function(
                lambda m, t: F.scaled_dot_product_attention(
                    F.normalize(t @ m.q, dim=-1, eps=0.0), F.normalize(t @ m.k, dim=-1, eps=0.0), t @ m.v
                ),
                q=(4, N),
                k=(4, N),
                v=(4, N),
            ),
            x(2, 3, 4),
        ),
        "unit queries and keys have no scale",
        2,
        holds=["q", "k"],
        breaks=["v"],
    ),
    Entry(
        "rotary positions",
        lambda: (
            Function(
                lambda m, t: F.scaled_dot_product_attention(rotary(t @ m.q + m.b), rotary(t @ m.k + m.c), t),
                q=(4, 4),
                k=(4, 4),
                b=(4,),
                c=(4,),
            ),
            x(2, 3, 4),
        ),
        "rotations are linear; a rotated bias of the keys differs between positions and matters",
        1,
        holds=[{"q": 1, "b": 1, "k": -1, "c": -1}],
        breaks=["c", "q"],
    ),
    Entry(
        "grouped-query attention",
        lambda: (Function(grouped_query_attention, q=(4, 8), k=(4, 4), v=(4, 4)), x(2, 3, 4)),
        "heads share keys; queries against keys",
        1,
        holds=[{"q": 1, "k": -1}],
        breaks=["q", "v"],
    ),
    Entry(
        "mask of -inf",
        lambda: (Function(additive_mask_attention(float("-inf")), q=(4, N), k=(4, N)), x(2, 3, 4)),
        "-inf is -inf at any scale; the clamp of the sum is an epsilon",
        1,
        2,
        holds=["q", "k"],
    ),
    Entry(
        "mask of -1e30",
        lambda: (Function(additive_mask_attention(-1e30), q=(4, N), k=(4, N)), x(2, 3, 4)),
        "a finite mask stands for -inf as long as scores stay small",
        1,
        2,
        holds=["q", "k"],
    ),
    # Recurrence and convolution ---------------------------------------------------------------------------------
    Entry(
        "lstm",
        lambda: (Recurrent(nn.LSTM), x(2, 3, 3)),
        "sigmoid and tanh forbid every scale inside; the head is normalised away",
        1,
        holds=["head.weight"],
        breaks=["cell", "cell.weight_ih_l0"],
    ),
    Entry(
        "gru",
        lambda: (Recurrent(nn.GRU), x(2, 3, 3)),
        "sigmoid and tanh forbid every scale inside; the head is normalised away",
        1,
        holds=["head.weight"],
        breaks=["cell", "cell.bias_hh_l0"],
    ),
    Entry(
        "depthwise convolution",
        lambda: (
            mlp(nn.Conv1d(4, 4, 3, groups=4, bias=False), nn.Conv1d(4, 3, 1, bias=False), nn.GroupNorm(1, 3, eps=0.0)),
            x(2, 4, 7),
        ),
        "linear in each kernel, then normalised",
        2,
        holds=["0.weight", "1.weight"],
        breaks=["2.weight"],
    ),
    Entry(
        "rows of a depthwise convolution",
        lambda: (mlp(nn.Conv1d(4, 4, 3, groups=4, bias=False), nn.InstanceNorm1d(4, eps=1e-300)), x(2, 4, 7)),
        "each channel is filtered and normalised by itself",
        0,
        2,
        holds=["0.weight[1]", "0.weight[others]"],
        slices={"0.weight": ("index", 0, None)},
    ),
    Entry(
        "transposed convolution",
        lambda: (mlp(nn.ConvTranspose1d(2, 4, 3), nn.ReLU(), nn.ConvTranspose1d(4, 2, 3, bias=False)), x(2, 2, 7)),
        "as a ReLU network",
        1,
        holds=[{"0.weight": 1, "0.bias": 1, "2.weight": -1}],
        breaks=["0.bias"],
    ),
    Entry(
        "residual convolutions with a bare 1x1 shortcut",
        lambda: (
            mlp(
                nn.Conv1d(2, 4, 3, bias=False),
                Residual(
                    mlp(nn.GroupNorm(2, 4, 0.0, False), nn.ReLU(), nn.Conv1d(4, 4, 1, bias=False)),
                    nn.Conv1d(4, 4, 1, bias=False),
                ),
                nn.GroupNorm(2, 4, 0.0, False),
            ),
            x(2, 2, 7),
        ),
        "the stem goes through the shortcut: a0 + as = ab, which scaling all alike breaks",
        2,
        holds=[{"0.weight": 1, "1.branch.2.weight": 1}, {"1.shortcut.weight": 1, "1.branch.2.weight": 1}],
        breaks=["*"],
    ),
    Entry(
        "pooling",
        lambda: (
            mlp(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), linear(2, 12)),
            x(2, 2, 10, 10),
        ),
        "maxima and means keep the degree",
        1,
        holds=[{"0.weight": 1, "0.bias": 1, "4.weight": -1}],
    ),
    Entry(
        "upsampling",
        lambda: (
            mlp(nn.Conv2d(2, 3, 3, bias=False), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 1, 1)),
            x(1, 2, 5, 5),
        ),
        "interpolation is linear",
        1,
        holds=[{"0.weight": 1, "2.weight": -1}],
        breaks=["2.bias"],
    ),
    # Embeddings and ties ----------------------------------------------------------------------------------------
    Entry(
        "tied embeddings, plain decoder",
        lambda: (Tied(False), ids(2, 3)),
        "the decoder's use of the table scales the logits",
        0,
        breaks=["embedding.weight"],
    ),
    Entry(
        "tied embeddings, unit rows",
        lambda: (Tied(True), ids(2, 3)),
        "both uses are normalised",
        1,
        holds=["embedding.weight"],
    ),
    Entry(
        "a token of a normalised table",
        lambda: (mlp(nn.Embedding(7, N), NORM()), torch.arange(7).reshape(1, 7)),
        "every row is normalised by itself",
        2,
        holds=["0.weight[2]", "0.weight[others]"],
        slices={"0.weight": ("index", 0, None)},
    ),
    Entry(
        "a token of a summed table",
        lambda: (mlp(nn.EmbeddingBag(7, N, mode="sum"), NORM()), torch.arange(14).reshape(2, 7) % 7),
        "rows are added before they are normalised",
        1,
        holds=["0.weight"],
    ),
    Entry(
        "a hidden neuron",
        lambda: (mlp(linear(6, 4, True), nn.ReLU(), linear(3, 6)), x(2, 4)),
        "row i of W1 (with its bias) against column i of W2",
        2,
        holds=[{"0.weight[2]": 1, "0.bias[2]": 1, "2.weight[:, 2]": -1}],
        breaks=["0.weight[2]"],
        slices={"0.weight": ("index", 0, None), "0.bias": ("index", 0, None), "2.weight": ("index", 1, None)},
    ),
    Entry(
        "position and token embeddings",
        lambda: (
            Function(embedded, e=(7, N), p=(9, N)),
            ids(2, 3),
        ),
        "they are added, so they scale together",
        1,
        holds=["*"],
        breaks=["e", "p"],
    ),
    # Products, losses, odd operations ---------------------------------------------------------------------------
    Entry(
        "matrix factorisation (example 1.2)",
        lambda: (Function(factorisation, a=(4, 3), b=(3, 4)),),
        "A B keeps c A, B / c",
        1,
        holds=[{"a": 1, "b": -1}],
        breaks=["a", "*"],
    ),
    Entry(
        "product of weights (example 1.1)",
        lambda: (Function(product_logistic, u=(3,), v=(2,)), x(5)),
        "degree 3 a_u + 2 a_v",
        1,
        holds=[{"u": 2, "v": -3}],
        breaks=[{"u": 1, "v": -1}],
    ),
    Entry(
        "cross entropy of unit logits",
        lambda: (
            Function(lambda m, t: F.cross_entropy(F.layer_norm(t @ m.w, (N,), eps=0.0), ids(2, high=N)), w=(4, N)),
            x(2, 4),
        ),
        "logits of degree 0",
        1,
        holds=["w"],
    ),
    Entry(
        "mean square error",
        lambda: (Function(lambda m, t: F.mse_loss(t @ m.w, t @ m.u), w=(4, N), u=(4, N)), x(2, 4)),
        "prediction and target would have to scale by c and the loss by c^2",
        0,
        breaks=["*"],
    ),
    Entry(
        "geometric mean",
        lambda: (
            Function(geometric_mean, w=(4, 1), u=(4, 1)),
            x(2, 4),
        ),
        "degree a_w / 2 - a_u / 4",
        1,
        holds=[{"w": 1, "u": 2}],
        breaks=["*"],
    ),
    Entry(
        "cumulative sum and product",
        lambda: (
            Function(lambda m, t: (t @ m.w).cumsum(-1) / (t @ m.w).abs().amax() + m.u.cumprod(0), w=(4, N), u=(N,)),
            x(2, 4),
        ),
        "entry i of a cumulative product has degree i, so u may not scale",
        1,
        holds=["w"],
        breaks=["u"],
    ),
    Entry(
        "sign and arg max",
        lambda: (
            Function(sign_and_arg_max, w=(4, N), u=(4, N)),
            x(2, 4),
        ),
        "neither depends on scale",
        2,
        holds=["w", "u"],
    ),
    Entry(
        "top-k mixture",
        lambda: (
            Function(
                lambda m, t: (lambda g: (g.values / g.values.sum(-1, keepdim=True) * m.e[g.indices]).sum(-1))(
                    (t @ m.g).abs().topk(2)
                ),
                g=(4, 6),
                e=(6,),
            ),
            x(2, 4),
        ),
        "the gates are divided by their sum; the experts are not",
        1,
        holds=["g"],
        breaks=["e"],
    ),
    Entry(
        "scatter and index",
        lambda: (
            Function(
                lambda m, t: F.layer_norm(
                    torch.zeros(2, N, dtype=t.dtype).scatter_add(1, ids(2, 3, high=N), (t @ m.w)[:, :3])
                    + (t @ m.u)[:, [4, 0, 3, 1, 2]],
                    (N,),
                    eps=0.0,
                ),
                w=(4, N),
                u=(4, N),
            ),
            x(2, 4),
        ),
        "sums of entries: equal degrees",
        1,
        holds=["*"],
        breaks=["w"],
    ),
    Entry(
        "gate of either sign",
        lambda: (
            Function(gated, g=(4, N), w=(4, N), u=(4, N)),
            x(2, 4),
        ),
        "a comparison with 0 ignores scale; the branches are the output",
        1,
        holds=["g"],
        breaks=["w", "u", ["w", "u"]],
    ),
    Entry(
        "power of two normaliser",
        lambda: (
            Function(
                lambda m, t: F.layer_norm(at_unit_scale(m, t), (N,), eps=0.0),
                w=(4, N),
            ),
            x(2, 4),
        ),
        "each row is multiplied by a power of two of its own, which the norm removes",
        1,
        holds=["w"],
    ),
    Entry(
        "power of two that stays",
        lambda: (
            Function(
                at_unit_scale,
                w=(4, N),
            ),
            x(2, 4),
        ),
        "the quotient depends on scale, for all c but powers of two",
        0,
        breaks=["w"],
    ),
    Entry(
        "dropout in training",
        lambda: (mlp(linear(6, 4), nn.Dropout(0.5), linear(3, 6)).train(), x(2, 4)),
        "a random mask is linear",
        1,
        holds=[{"0.weight": 1, "2.weight": -1}],
        breaks=["0.weight"],
    ),
    Entry(
        "a parameter that is not used",
        lambda: (Function(lambda m, t: t @ m.w, w=(4, N), u=(3,)), x(2, 4)),
        "no output depends on u",
        0,
        breaks=["w"],
    ),
]
