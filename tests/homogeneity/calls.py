"""A call of every operation that has a rule: functions of h (3 x 6) and of g (3 x 6), both linear in parameters.

`h` is t W and `g` is t U + 0.3 V, with inputs t, so that neither has a sign. Calls use what they need.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten
I63 = torch.tensor([[0, 2], [1, 0], [5, 3]])
ROWS = torch.tensor([2, 0, 2, 1])
TARGET = torch.tensor([1, 0, 5])
MASK = torch.tensor([[True, False, True, True, False, True]] * 2 + [[False] * 3 + [True] * 3])
SPHERE = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64).reshape(1, 2, 1, 1, 3)
KERNEL = torch.linspace(-1.0, 1.0, 2 * 2 * 3, dtype=torch.float64).reshape(2, 2, 3)


def image(h: Tensor) -> Tensor:
    """(1, 2, 3, 3)."""
    return h.reshape(1, 2, 3, 3)


def signal(h: Tensor) -> Tensor:
    """(3, 2, 3)."""
    return h.reshape(3, 2, 3)


def volume(h: Tensor) -> Tensor:
    return torch.cat([h, h.flip(0)]).reshape(1, 1, 3, 4, 3)


def one(name: str, *arguments: Any, **options: Any) -> Callable[[Tensor, Tensor], Any]:
    """An operation of h and constants."""

    def call(h: Tensor, g: Tensor) -> Any:
        return getattr(aten, name)(h, *arguments, **options)

    return call


def of(name: str, prepare: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Any]:
    """An operation of a function of h."""

    def call(h: Tensor, g: Tensor) -> Any:
        return getattr(aten, name)(prepare(h))

    return call


def truth(name: str, prepare: Callable[[Tensor], Tensor] | None = None) -> Callable[[Tensor, Tensor], Any]:
    """Truth values of h, or of h and g, as numbers."""

    def call(h: Tensor, g: Tensor) -> Any:
        operation = getattr(aten, name)
        return (operation(h) if prepare is None else operation(prepare(h), prepare(g))).to(h.dtype)

    return call


def two(name: str, *arguments: Any) -> Callable[[Tensor, Tensor], Any]:
    """An operation of h and g."""

    def call(h: Tensor, g: Tensor) -> Any:
        return getattr(aten, name)(h, g, *arguments)

    return call


def first(function: Callable[[Tensor, Tensor], Any], *parts: int) -> Callable[[Tensor, Tensor], Any]:
    """Parts of several results."""

    def call(h: Tensor, g: Tensor) -> Any:
        return [function(h, g)[part] for part in (parts or (0,))]

    return call


POINTWISE = "relu abs neg gelu silu mish sigmoid hardsigmoid hardswish relu6 tanh softplus log_sigmoid elu celu exp"
POINTWISE += " exp2 selu expm1 sin cos tan sinh cosh asinh atan erf erfc sinc floor ceil round trunc frac sign sgn"
POINTWISE += " leaky_relu hardtanh hardshrink softshrink square reciprocal clone positive nan_to_num detach alias"
POINTWISE += " contiguous zeros_like ones_like lift_fresh_copy"
OF_TWO = "add sub mul div maximum minimum fmax fmin atan2 hypot copysign remainder fmod"
COMPARISONS = "gt lt ge le eq ne logical_and logical_or logical_xor"
OF_POSITIVE = "log log2 log10 sqrt rsqrt lgamma digamma"
OF_UNIT = "asin acos atanh erfinv log1p"

CALLS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    **{name: one(name) for name in POINTWISE.split()},
    **{name: of(name, torch.abs) for name in OF_POSITIVE.split()},
    **{name: of(name, lambda h: h / 100) for name in OF_UNIT.split()},
    "logit": lambda h, g: torch.logit(h.abs() / 100),
    "acosh": lambda h, g: torch.acosh(h.abs() + 1.5),
    **{name: truth(name) for name in ["isnan", "isinf", "isfinite", "signbit", "logical_not"]},
    "full_like": one("full_like", 2.5),
    "rand_like": lambda h, g: torch.rand_like(h) * h,
    "new_zeros": lambda h, g: h.new_zeros(3, 6) + h,
    "new_ones": lambda h, g: h.new_ones(3, 6),
    "new_full": lambda h, g: h.new_full((3, 6), 2.0),
    "to bool": lambda h, g: h.to(torch.bool).to(h.dtype),
    "to whole numbers": lambda h, g: (10 * h).to(torch.int64).to(h.dtype),
    "rrelu": lambda h, g: F.rrelu(h, training=True),
    # Arithmetic
    **{
        name: two(name)
        for name in [
            "add",
            "sub",
            "mul",
            "div",
            "maximum",
            "minimum",
            "fmax",
            "fmin",
            "atan2",
            "hypot",
            "copysign",
            "remainder",
            "fmod",
        ]
    },
    "add a number": one("add", 2.0),
    "add 0": one("add", 0.0),
    "add an epsilon": lambda h, g: h / (h.abs().sum(-1, keepdim=True) + 1e-200),
    "add with alpha": lambda h, g: torch.add(h, g, alpha=-2),
    "rsub": one("rsub", 1.5),
    "rounded quotient": lambda h, g: torch.div(h, g, rounding_mode="floor"),
    "floor_divide": two("floor_divide"),
    "lerp": lambda h, g: torch.lerp(h, g, 0.3),
    "lerp with a weight that scales": lambda h, g: torch.lerp(h, h.flip(1), g),
    "addcmul": lambda h, g: torch.addcmul(h, g, g, value=0.5),
    "addcdiv": lambda h, g: torch.addcdiv(h, g, g.abs(), value=0.5),
    "pow 3": one("pow", 3),
    "pow 1.5": lambda h, g: h.abs() ** 1.5,
    "pow -2": one("pow", -2),
    "pow of a tensor": lambda h, g: h.abs() ** g,
    "number to a power": lambda h, g: 2.0**h,
    "clamp at 0": one("clamp_min", 0.0),
    "clamp between": one("clamp", -0.5, 0.5),
    "clamp from above": one("clamp_max", 0.0),
    "clamp by a tensor": lambda h, g: torch.clamp(h, min=g),
    "epsilon by clamp": lambda h, g: h / h.abs().amax(-1, keepdim=True).clamp_min(1e-200),
    "threshold 0": lambda h, g: F.threshold(h, 0.0, 0.0),
    "threshold 1": lambda h, g: F.threshold(h, 0.5, 0.0),
    "prelu": lambda h, g: F.prelu(h, g[0, :1]),
    "glu": lambda h, g: F.glu(h, 1),
    "where": lambda h, g: torch.where(MASK, h, g),
    "where with 0": lambda h, g: torch.where(h > g, h, 0.0),
    "where for rows": lambda h, g: F.layer_norm(torch.where(MASK[:, :1], h, g * g), (6,), eps=0.0),
    "masked_fill 0": lambda h, g: h.masked_fill(MASK, 0.0),
    "masked_fill 1": lambda h, g: h.masked_fill(MASK, 1.0),
    **{name: truth(name, torch.clone) for name in COMPARISONS.split()},
    "compare with 0": lambda h, g: (h > 0).to(h.dtype),
    "compare with 1": lambda h, g: (h > 0.5).to(h.dtype),
    **{name: truth(name, lambda h: h > 0) for name in ["bitwise_and", "bitwise_or", "bitwise_xor"]},
    "bitwise_not": lambda h, g: (~(h > 0)).to(h.dtype),
    "ldexp": lambda h, g: torch.ldexp(h, I63[:, :1]),
    "frexp": first(lambda h, g: torch.frexp(h)),
    "dropout": lambda h, g: F.dropout(h, 0.5),
    "alpha dropout": lambda h, g: F.alpha_dropout(h, 0.5, training=True),
    "feature dropout": lambda h, g: F.dropout1d(signal(h), 0.5, training=True),
    "bernoulli": lambda h, g: torch.bernoulli(torch.sigmoid(h)) * g,
    "rand": lambda h, g: h * torch.rand(3, 6, dtype=h.dtype),
    "randint": lambda h, g: h * torch.randint(1, 5, (3, 6)),
    "randperm": lambda h, g: h.sum(1) * torch.randperm(3),
    "normal": lambda h, g: torch.normal(h, 1.0),
    "randn_like": lambda h, g: h + torch.randn_like(h),
    "randn": lambda h, g: h + torch.randn(3, 6, dtype=h.dtype),
    # Reductions
    **{name: one(name, [1]) for name in ["sum", "mean", "amax", "amin", "var", "std"]},
    "sum over all": one("sum"),
    "sum keepdim": lambda h, g: h / h.sum(0, keepdim=True),
    "nansum": one("nansum", [0]),
    "max": first(lambda h, g: h.max(1)),
    "min": first(lambda h, g: h.min(0)),
    "max over all": one("max"),
    "median": first(lambda h, g: h.median(1)),
    "nanmedian": first(lambda h, g: h.nanmedian(1)),
    "mode": first(lambda h, g: h.mode(1)),
    "kthvalue": first(lambda h, g: h.kthvalue(2, 1)),
    "aminmax": first(lambda h, g: aten.aminmax(h, dim=1), 0, 1),
    "argmax": lambda h, g: h.argmax(1).to(h.dtype),
    "argmin": lambda h, g: h.argmin(0).to(h.dtype),
    "argsort": lambda h, g: h.argsort(1).to(h.dtype),
    "sort": first(lambda h, g: h.sort(1)),
    "stable sort": first(lambda h, g: torch.sort(h, dim=0, stable=True)),
    "diff along rows": lambda h, g: torch.diff(h, dim=0),
    "diff with numbers before it": lambda h, g: torch.diff(h, prepend=torch.ones(3, 1, dtype=h.dtype)),
    "sum of whole numbers": lambda h, g: (10 * h).sum(1, dtype=torch.int64).to(h.dtype),
    "cdist of order 0": lambda h, g: torch.cdist(h, h.flip(0), p=0.0),
    "dist of order 0": lambda h, g: torch.dist(h, h.flip(0), 0),
    "nan_to_num by a number": lambda h, g: torch.where(MASK, h, -torch.inf).nan_to_num(neginf=-1.0),
    "nan_to_num by 0": lambda h, g: torch.where(MASK, h, torch.inf).nan_to_num(posinf=0.0),
    "softsign": lambda h, g: h / (1.0 + h.abs()),
    "topk": first(lambda h, g: h.topk(2, 1)),
    "any": lambda h, g: (h > 0).any(1).to(h.dtype),
    "all": lambda h, g: (h > 0).all().to(h.dtype),
    "prod": one("prod", 1),
    "prod over all": one("prod"),
    "var_mean": first(lambda h, g: torch.var_mean(h, 1), 0, 1),
    "std_mean": first(lambda h, g: torch.std_mean(h, 1), 0, 1),
    "linalg_vector_norm": one("linalg_vector_norm", 3, [1]),
    "norm 0": one("linalg_vector_norm", 0, [1]),
    "norm": lambda h, g: torch.norm(h, p=1, dim=1),
    "frobenius": lambda h, g: torch.linalg.matrix_norm(h),
    "cumsum": one("cumsum", 1),
    "cumprod": one("cumprod", 1),
    "cummax": first(lambda h, g: h.cummax(1)),
    "cummin": first(lambda h, g: h.cummin(0)),
    "diff": lambda h, g: torch.diff(h, dim=1),
    "logcumsumexp": one("logcumsumexp", 1),
    "softmax": one("softmax", 1),
    "log_softmax": one("log_softmax", 0),
    "logsumexp": one("logsumexp", [1]),
    "max_pool1d": lambda h, g: F.max_pool1d(h[None], 2),
    "max_pool2d": lambda h, g: F.max_pool2d(image(h), 2),
    "max_pool3d": lambda h, g: F.max_pool3d(volume(h), 2),
    "max_pool2d_with_indices": first(lambda h, g: F.max_pool2d(image(h), 2, return_indices=True)),
    "max_pool3d_with_indices": first(lambda h, g: F.max_pool3d(volume(h), 2, return_indices=True)),
    "avg_pool1d": lambda h, g: F.avg_pool1d(h[None], 2),
    "avg_pool2d": lambda h, g: F.avg_pool2d(image(h), 2),
    "avg_pool3d": lambda h, g: F.avg_pool3d(volume(h), 2),
    "adaptive_avg_pool1d": lambda h, g: F.adaptive_avg_pool1d(h[None], 2),
    "adaptive_avg_pool2d": lambda h, g: F.adaptive_avg_pool2d(image(h), 2),
    "adaptive_avg_pool3d": lambda h, g: F.adaptive_avg_pool3d(volume(h), 2),
    "adaptive_max_pool2d": lambda h, g: F.adaptive_max_pool2d(image(h), 2),
    "adaptive_max_pool3d": lambda h, g: F.adaptive_max_pool3d(volume(h), 2),
    "upsample_nearest1d": lambda h, g: F.interpolate(h[None], scale_factor=2),
    "upsample_nearest2d": lambda h, g: F.interpolate(image(h), scale_factor=2),
    "upsample_nearest3d": lambda h, g: F.interpolate(volume(h), scale_factor=2),
    "upsample_nearest_exact": lambda h, g: F.interpolate(image(h), scale_factor=1.5, mode="nearest-exact"),
    "upsample antialiased": lambda h, g: F.interpolate(image(h), scale_factor=0.7, mode="bilinear", antialias=True),
    "upsample_linear1d": lambda h, g: F.interpolate(h[None], scale_factor=2, mode="linear"),
    "upsample_bilinear2d": lambda h, g: F.interpolate(image(h), scale_factor=2, mode="bilinear"),
    "upsample_bicubic2d": lambda h, g: F.interpolate(image(h), scale_factor=2, mode="bicubic"),
    "grid_sampler_2d": lambda h, g: F.grid_sample(
        image(h), torch.tanh(g[:, :2]).reshape(1, 3, 1, 2), align_corners=True
    ),
    "grid_sampler_3d": lambda h, g: F.grid_sample(volume(h), SPHERE, align_corners=True),
    "fft": lambda h, g: torch.fft.fft(h).abs() + torch.fft.fft2(g).imag.abs(),
    "inverse fft": lambda h, g: torch.fft.irfft(torch.fft.rfft(h) * 1j),
    "fft of complex numbers": lambda h, g: torch.view_as_real(
        torch.fft.ifft(torch.view_as_complex(h.reshape(3, 3, 2)))
    ),
    "real": lambda h, g: torch.fft.fft(h).real,
    "cosine_similarity": lambda h, g: F.cosine_similarity(h, g, eps=0.0),
    "pairwise_distance": lambda h, g: F.pairwise_distance(h, g, eps=0.0),
    "cdist": lambda h, g: torch.cdist(h, g),
    "dist": lambda h, g: torch.dist(h, g),
    # Contractions
    "linear": lambda h, g: F.linear(h, g),
    "linear with bias": lambda h, g: F.linear(h, g, g[:, 0]),
    "linear of a vector": lambda h, g: F.linear(h[0], g[0]),
    "mm": lambda h, g: torch.mm(h, g.T),
    "bmm": lambda h, g: torch.bmm(signal(h), signal(g).mT),
    "matmul of vector and matrix": lambda h, g: h[:, 0] @ g,
    "matmul of batches": lambda h, g: signal(h) @ g[0].reshape(3, 2),
    "mv": lambda h, g: torch.mv(h, g[0]),
    "dot": lambda h, g: torch.dot(h[0], g[1]),
    "inner": lambda h, g: torch.inner(h, g),
    "outer": lambda h, g: torch.outer(h[:, 0], g[0]),
    "addmm": lambda h, g: torch.addmm(g[:, :3], h, g.T, alpha=2.0),
    "addmm without its first": lambda h, g: torch.addmm(g[:, :3], h, g.T, beta=0),
    "baddbmm": lambda h, g: torch.baddbmm(signal(h)[..., :2], signal(h), signal(g).mT),
    "addbmm": lambda h, g: torch.addbmm(h[:2, :2], signal(h), signal(g).mT),
    "addmv": lambda h, g: torch.addmv(h[:, 0], h, g[0]),
    "einsum": lambda h, g: torch.einsum("ij,kj->ik", h, g),
    "einsum with a trace": lambda h, g: torch.einsum("ii,i->i", h[:, :3], g[:, 0]),
    "einsum with dots": lambda h, g: torch.einsum("...i,i->...", signal(h), g[0, :3]),
    "bilinear": lambda h, g: F.bilinear(h, g, torch.ones(2, 6, 6, dtype=h.dtype), g[0, :2]),
    "attention": lambda h, g: F.scaled_dot_product_attention(h[None, None], g[None, None], g[None, None]),
    "attention with a bias": lambda h, g: F.scaled_dot_product_attention(
        MASK[None].to(h.dtype), g[None], g[None], attn_mask=h[None, :, :3]
    ),
    "conv1d": lambda h, g: F.conv1d(signal(h), g.reshape(3, 2, 3), padding=1),
    "conv2d": lambda h, g: F.conv2d(image(h), g.reshape(3, 2, 3, 1), h[0, :3]),
    "conv3d": lambda h, g: F.conv3d(volume(h), g.reshape(3, 1, 3, 2, 1)),
    "conv_transpose1d": lambda h, g: F.conv_transpose1d(signal(h), g[:2].reshape(2, 2, 3)),
    "conv_transpose2d": lambda h, g: F.conv_transpose2d(image(h), g[:2].reshape(2, 2, 3, 1), groups=2),
    "conv_transpose3d": lambda h, g: F.conv_transpose3d(volume(h), g.reshape(1, 3, 3, 2, 1)),
    "convolution": lambda h, g: aten.convolution(signal(h), KERNEL, None, [1], [0], [1], False, [0], 1),
    # Normalisations
    "layer_norm": lambda h, g: F.layer_norm(h, (6,), g[0], g[1], eps=0.0),
    "layer_norm over two axes": lambda h, g: F.layer_norm(signal(h), (2, 3), eps=0.0),
    "native_layer_norm": first(lambda h, g: torch.native_layer_norm(h, (6,), g[0], g[1], 0.0), 0, 1, 2),
    "rms_norm": lambda h, g: F.rms_norm(h, (6,), g[0], eps=0.0),
    "group_norm": lambda h, g: F.group_norm(h, 2, g[0], g[1], eps=0.0),
    "batch_norm": lambda h, g: F.batch_norm(h, None, None, g[0], g[1], training=True, eps=1e-300),
    "batch_norm that tracks": lambda h, g: F.batch_norm(
        h, torch.zeros(6, dtype=h.dtype), torch.ones(6, dtype=h.dtype), g[0], g[1], training=True, eps=1e-300
    ),
    "batch_norm in evaluation": lambda h, g: F.batch_norm(
        h, torch.arange(6.0, dtype=h.dtype), torch.ones(6, dtype=h.dtype), g[0], g[1]
    ),
    "instance_norm": lambda h, g: F.instance_norm(signal(h), eps=1e-300),
    # Shapes
    "reshape": lambda h, g: h.reshape(2, 9),
    "reshape splits": lambda h, g: h.reshape(3, 3, 2).transpose(1, 2).reshape(3, 6),
    "flatten": lambda h, g: signal(h).flatten(0, 1),
    "unflatten": lambda h, g: h.unflatten(1, (2, 3)),
    "permute": lambda h, g: signal(h).permute(2, 0, 1),
    "transpose": lambda h, g: h.transpose(0, 1),
    "t": lambda h, g: h.t(),
    "movedim": lambda h, g: signal(h).movedim(0, 2),
    "unsqueeze": lambda h, g: h.unsqueeze(1) * g.unsqueeze(0),
    "squeeze": lambda h, g: h[:, :1].squeeze(1),
    "squeeze all": lambda h, g: h[:, :1].squeeze(),
    "expand": lambda h, g: h[:, :1].expand(3, 4),
    "repeat": lambda h, g: h.repeat(2, 1, 2),
    "repeat_interleave": lambda h, g: h.repeat_interleave(2, 1),
    "slice": lambda h, g: h[:, 1:5:2],
    "select": lambda h, g: h[:, 2],
    "split": lambda h, g: h.split(2, 1)[1],
    "split_with_sizes": lambda h, g: h.split([1, 2, 3], 1)[2],
    "chunk": lambda h, g: h.chunk(3, 1)[0],
    "unbind": lambda h, g: h.unbind(1)[3],
    "diagonal": lambda h, g: h.diagonal(1),
    "tril": lambda h, g: h.tril(),
    "triu": lambda h, g: h.triu(1),
    "unfold": lambda h, g: h.unfold(1, 3, 2),
    "im2col": lambda h, g: F.unfold(image(h), 2),
    "col2im": lambda h, g: F.fold(h[:2, :4].reshape(1, 4, 2), (3, 2), (2, 2)),
    "pixel_shuffle": lambda h, g: F.pixel_shuffle(torch.cat([image(h), image(g)], 1), 2),
    "pixel_unshuffle": lambda h, g: F.pixel_unshuffle(h[None, :2], 2),
    "cat": lambda h, g: torch.cat([h, g], 1),
    "cat with 0": lambda h, g: torch.cat([h, torch.zeros(3, 2, dtype=h.dtype)], 1),
    "stack": lambda h, g: torch.stack([h, g], 1),
    "flip": lambda h, g: h.flip(1),
    "roll": lambda h, g: h.roll(2, 1),
    "roll all": lambda h, g: h.roll(2),
    "pad": lambda h, g: F.pad(h, (1, 2)),
    "pad by 1": lambda h, g: F.pad(h, (1, 2), value=1.0),
    "pad by reflection": lambda h, g: F.pad(h[None], (1, 2), mode="reflect"),
    "select_scatter": lambda h, g: torch.select_scatter(h, g[:, 0], 1, 2),
    "slice_scatter": lambda h, g: torch.slice_scatter(h, g[:, :2], 1, 2, 4),
    "fill": lambda h, g: h + torch.fill(g, 0.0),
    "copy": lambda h, g: torch.zeros_like(h).copy_(g),
    "meshgrid": lambda h, g: torch.meshgrid(h[0], g[:, 0], indexing="ij")[0],
    "broadcast_tensors": lambda h, g: torch.broadcast_tensors(h[:, :1], g)[0],
    # Indexing
    "embedding": lambda h, g: F.embedding(ROWS, h),
    "embedding_bag": lambda h, g: F.embedding_bag(ROWS.reshape(2, 2), h, mode="sum"),
    "weighted embedding_bag": lambda h, g: F.embedding_bag(
        ROWS.reshape(2, 2), h, mode="sum", per_sample_weights=g[:2, :2]
    ),
    "index_select": lambda h, g: h.index_select(1, ROWS),
    "gather": lambda h, g: h.gather(1, I63),
    "take_along_dim": lambda h, g: h.take_along_dim(I63, 1),
    "index": lambda h, g: h[:, ROWS],
    "index by two": lambda h, g: h[TARGET.clamp(max=2), TARGET],
    "index by a mask": lambda h, g: torch.where(MASK[:, :1], h, 0.0)[:, [0, 0, 4]],
    "put": lambda h, g: torch.put(h, I63, g[:, :2]),
    "take": lambda h, g: torch.take(h, I63),
    "index_put": lambda h, g: h.index_put((torch.tensor([0, 2]),), g[:2]),
    "scatter": lambda h, g: h.scatter(1, I63, g[:, :2]),
    "scatter a number": lambda h, g: h.scatter(1, I63, 1.0),
    "products by scatter": lambda h, g: h.scatter(1, I63, g[:, :2], reduce="multiply"),
    "scatter_add": lambda h, g: h.scatter_add(1, I63, g[:, :2]),
    "scatter_reduce": lambda h, g: h.scatter_reduce(1, I63, g[:, :2], "amax"),
    "products by scatter_reduce": lambda h, g: h.scatter_reduce(1, I63, g[:, :2], "prod"),
    "index_add": lambda h, g: h.index_add(0, torch.tensor([0, 2]), g[:2]),
    "index_copy": lambda h, g: h.index_copy(0, torch.tensor([0, 2]), g[:2]),
    "index_fill": lambda h, g: h.index_fill(0, torch.tensor([0, 2]), 0.0),
    "masked_scatter": lambda h, g: h.masked_scatter(MASK, g),
    "one_hot": lambda h, g: F.one_hot(h.argmax(1), 6).to(h.dtype) * g,
    "bucketize": lambda h, g: torch.bucketize(h, torch.tensor([-0.5, 0.5], dtype=h.dtype)).to(h.dtype),
    "searchsorted": lambda h, g: torch.searchsorted(torch.tensor([-0.5, 0.5], dtype=h.dtype), h).to(h.dtype),
    # Losses
    "cross_entropy": lambda h, g: F.cross_entropy(h, TARGET, g[0].abs()),
    "nll_loss": lambda h, g: F.nll_loss(h, TARGET),
    "mse_loss": lambda h, g: F.mse_loss(h, g),
    "l1_loss": lambda h, g: F.l1_loss(h, g),
    "smooth_l1_loss": lambda h, g: F.smooth_l1_loss(h, g),
    "huber_loss": lambda h, g: F.huber_loss(h, g),
    "binary_cross_entropy_with_logits": lambda h, g: F.binary_cross_entropy_with_logits(h, g.abs()),
    "kl_div": lambda h, g: F.kl_div(h, g.abs()),
    "binary_cross_entropy": lambda h, g: F.binary_cross_entropy(torch.sigmoid(h), torch.sigmoid(g)),
    "soft_margin_loss": lambda h, g: F.soft_margin_loss(h, torch.sign(g)),
}
