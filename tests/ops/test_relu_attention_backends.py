"""Every backend computes the reference: output, gradients, dropout mask, whatever its blocks."""

import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from sibert.ops import choose_backend, relu_attention
from sibert.ops.relu_attention import reference_relu_attention
from sibert.ops.relu_attention.dropout import draw_seed, kept, row_keys
from sibert.ops.relu_attention.operators import blocked_relu_attention
from sibert.ops.relu_attention.spans import key_spans
from tests.assertions import relative_change
from tests.ops.attention_cases import Case, cases, needs_triton, poison_new_memory, results

blocked = importlib.import_module("sibert.ops.relu_attention.blocked")
choice = importlib.import_module("sibert.ops.relu_attention.choice")
CASES = cases()


@pytest.fixture(params=["large blocks", "small blocks"])
def _blocks(request, monkeypatch):
    if request.param == "small blocks":
        monkeypatch.setattr(blocked, "BLOCK", dict.fromkeys(blocked.BLOCK, 300))
        monkeypatch.setattr(blocked, "ROWS", 16)
        monkeypatch.setattr(blocked, "SHORTEST", 4)


@pytest.fixture
def _poisoned(monkeypatch):
    poison_new_memory(monkeypatch)


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def assert_agree(ours, definition, tolerance=1e-12):
    for mine, defined in zip(ours, definition, strict=True):
        assert mine.shape == defined.shape
        assert mine.isfinite().all()
        assert (mine - defined).abs().max() <= tolerance * max(1.0, defined.abs().max())


@pytest.mark.parametrize("backend", ["deferred", "blocked"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("_blocks", "_poisoned")
def test_backends_agree_with_the_reference(name, backend):
    assert_agree(results(CASES[name], backend), results(CASES[name], "reference"))


def test_masks_of_the_options_are_what_they_say():
    """The definition's own masks, element by element in plain Python."""
    S, T, window, seqlens, starts = 5, 8, 3, [0, 6], [0, 2, 2, 7, 8]
    for causal in (False, True):
        spans = key_spans(S, T, torch.device("cpu"), seqlens_B=torch.tensor(seqlens), causal=causal, window=window)
        for b in range(2):
            for i in range(S):
                position = i + T - S
                expected = [
                    j < seqlens[b] and abs(position - j) < window and (not causal or j <= position) for j in range(T)
                ]
                assert spans.allowed(T)[b, 0, i].tolist() == expected
    packed = key_spans(T, T, torch.device("cpu"), cu_seqlens=torch.tensor(starts))
    sequence = [0, 0, 2, 2, 2, 2, 2, 3]
    assert packed.allowed(T)[0, 0].tolist() == [[sequence[i] == sequence[j] for j in range(T)] for i in range(T)]


@pytest.mark.parametrize("backend", ["reference", "deferred", "blocked"])
def test_spans_stand_for_the_options_that_made_them(backend):
    q, k, v = torch.randn(3, 1, 2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for options in ({"cu_seqlens": torch.tensor([0, 4, 4, 9])}, {"causal": True, "window": 3}):
        spans = key_spans(9, 9, q.device, **options)
        ours, _ = relu_attention(q, k, v, spans=spans, backend=backend)
        assert torch.equal(ours, relu_attention(q, k, v, backend=backend, **options)[0])
        with pytest.raises(ValueError, match="spans hold lengths, bounds, causality"):
            relu_attention(q, k, v, spans=spans, **options)
    with pytest.raises(ValueError, match="for each of the 9 queries"):
        relu_attention(q, k, v, spans=key_spans(8, 9, q.device, causal=True))


@given(
    S=st.integers(1, 12), T=st.integers(1, 12), causal=st.booleans(), window=st.none() | st.integers(1, 5),
    lengths=st.none() | st.lists(st.integers(0, 1), min_size=2, max_size=2),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_queries_of_a_key_are_an_interval_too(S, T, causal, window, lengths):
    seqlens = None if lengths is None else torch.tensor(lengths) * T
    spans = key_spans(S, T, torch.device("cpu"), causal=causal, window=window, seqlens_B=seqlens)
    if spans is not None:
        turned = spans.queries_of_keys(T)
        assert torch.equal(turned.allowed(S), spans.allowed(T).mT)


def test_packed_sequences_equal_sequences_one_by_one():
    case = CASES["packed"]
    query, key, value = case.inputs()
    starts = case.options["cu_seqlens"]
    together, _ = relu_attention(query, key, value, cu_seqlens=torch.tensor(starts), backend="blocked")
    for start, end in itertools.pairwise(starts):
        part = slice(start, end)
        alone, _ = reference_relu_attention(query[:, :, part], key[:, :, part], value[:, :, part])
        torch.testing.assert_close(together[:, :, part], alone)


def with_forbidden_keys(backend, name, fill):
    """Output and gradients of the rest where keys and values that nobody may attend to hold a number."""
    query, key, value = Case(batch=1, queries=37, keys=37).inputs()
    forbidden = torch.arange(37) >= 20  # in the tile, or the block, of keys that count
    options = {
        "seqlens": {"seqlens": torch.tensor([20])},
        "mask": {"mask": ~forbidden[None]},
        "any mask": {"mask": (~forbidden).expand(1, 1, 37, 37)},
        "cu_seqlens": {"cu_seqlens": torch.tensor([0, 20, 37])},
    }[name]
    with torch.no_grad():
        key[..., forbidden, :], value[..., forbidden, :] = fill, fill
    output = relu_attention(query, key, value, backend=backend, **options)[0][:, :, :20]
    gradients = torch.autograd.grad(output.square().sum(), (query, key, value))
    return [output, *(gradient[:, :, :20] for gradient in gradients)]


FORBIDDEN = ["seqlens", "mask", "any mask", "cu_seqlens"]


@pytest.mark.parametrize("backend", ["reference", "deferred", "blocked"])
@pytest.mark.parametrize("name", FORBIDDEN)
def test_finite_numbers_in_padding_and_in_other_sequences_change_no_bit(name, backend):
    for one, other in zip(*(with_forbidden_keys(backend, name, fill) for fill in (0.0, 1e9)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["reference", "deferred"])
@pytest.mark.parametrize("name", FORBIDDEN)
def test_nan_in_padding_may_get_through(name, backend):
    """Why the promise is made for finite numbers alone: 0 times NaN is NaN."""
    assert with_forbidden_keys(backend, name, math.nan)[0].isnan().any()


@pytest.mark.parametrize("backend", ["reference", "deferred", "blocked"])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_queries_and_keys_changes_nothing_but_rounding(backend, scale):
    query, key, value = Case(queries=63, keys=111).inputs(torch.float32)
    plain, rescaled = (relu_attention(query * c, key * c, value, causal=True, backend=backend)[0] for c in (1.0, scale))
    assert relative_change(rescaled, plain) < 1e-6
    assert relative_change(relu_attention(query, key, value * 2)[0], plain) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float64_as_the_reference(dtype):
    case = Case(queries=300, keys=300, width=64)
    exact, definition = results(case, "reference", torch.float64), results(case, "reference", dtype)
    for ours, theirs, true in zip(results(case, "blocked", dtype), definition, exact, strict=True):
        assert ours.dtype == dtype
        assert relative_change(ours.double(), true) < 1.3 * relative_change(theirs.double(), true)


def test_nan_is_not_hidden():
    query, key, value = Case().inputs()
    with torch.no_grad():
        query[0, 0, 3] = math.nan
    for backend in ("reference", "deferred", "blocked"):
        output, _ = relu_attention(query, key, value, backend=backend)
        assert output[0, 0, 3].isnan().all()
        assert output[0, 0, 4].isfinite().all()


def test_results_repeat_bit_for_bit():
    for one, other in zip(results(CASES["dropout"], "blocked"), results(CASES["dropout"], "blocked"), strict=True):
        assert torch.equal(one, other)


def test_dropout_drops_independently_and_at_its_rate():
    rows, columns, p = 512, 512, 0.3
    seed = draw_seed(torch.device("cpu"))
    mask = kept(row_keys(seed, torch.arange(rows)), torch.arange(columns), p).double()
    assert abs(mask.mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / mask.numel())
    correlations = torch.corrcoef(mask)  # of rows with each other: 1/sqrt(columns) if independent
    assert (correlations - torch.eye(rows)).std() < 1.1 / math.sqrt(columns)
    assert (torch.corrcoef(mask.mT) - torch.eye(columns)).std() < 1.1 / math.sqrt(rows)
    other = kept(row_keys(seed + 1, torch.arange(rows)), torch.arange(columns), p).double()
    assert abs(torch.corrcoef(torch.stack((mask.flatten(), other.flatten())))[0, 1]) < 0.01


def test_dropout_is_the_definition_and_follows_the_generator():
    query, key, value = Case(groups=1).inputs()
    outputs = {}
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        output, _ = relu_attention(query, key, value, dropout_p=0.4, backend="blocked")
        if seed in outputs:
            assert torch.equal(outputs[seed], output)
        outputs[seed] = output
    assert not torch.equal(outputs[1], outputs[2])
    # Each normalised weight is dropped or divided by 1 - p: with the unit vectors as values, the output is the weights.
    query, key, _ = Case(queries=9, keys=20).inputs()
    unit = torch.eye(20, dtype=torch.float64).expand(2, 2, 20, 20)
    dropped, _ = relu_attention(query, key, unit, dropout_p=0.4, backend="blocked")
    _, weights = relu_attention(query, key, unit, need_weights=True)
    ratio = (dropped / weights)[weights > 0]
    assert torch.allclose(ratio[ratio > 0], torch.tensor(1 / 0.6, dtype=torch.float64))
    assert 0.3 < (ratio == 0).double().mean() < 0.5


def test_the_gradient_can_be_differentiated():
    case = Case(batch=1, heads=2, groups=1, queries=3, keys=4, width=2, options={"causal": True})
    inputs = case.inputs()
    assert torch.autograd.gradgradcheck(lambda *qkv: relu_attention(*qkv, causal=True, backend="blocked")[0], inputs)


@pytest.mark.usefixtures("_two_threads")
def test_memory_does_not_grow_with_the_product_of_the_lengths():
    sizes = []
    original = blocked.Problem.restrict_

    def watch(self, scores, *rest):
        sizes.append(scores.numel())
        return original(self, scores, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked.Problem, "restrict_", watch)
        patch.setitem(blocked.BLOCK, torch.float32, 1 << 16)
        for length in (512, 2048):
            inputs = Case(batch=1, heads=1, groups=1, queries=length, keys=length, width=16).inputs(torch.float32)
            relu_attention(*inputs, backend="blocked")[0].sum().backward()
        assert 2048**2 / 2 > 512**2 > blocked.BLOCK[torch.float32] * torch.get_num_threads() >= max(sizes)


class TestChoice:
    def test_short_sequences_keep_their_scores_and_long_ones_do_not(self):
        short, long = (torch.empty(1, 1, length, 8) for length in (64, 1024))
        assert choose_backend(short, short).name == "deferred"
        assert choose_backend(long, long).name == "blocked"
        assert "memory" in choose_backend(long, long).reason
        assert choose_backend(long, long, need_weights=True).name == "reference"

    def test_in_bfloat16_the_reference_divides_rows_that_are_no_longer_than_those_of_the_output(self):
        wide, longer = (torch.empty(1, 1, length, 64, dtype=torch.bfloat16) for length in (64, 65))
        assert choose_backend(longer, wide).name == "reference"
        assert "saves nothing" in choose_backend(longer, wide).reason
        assert choose_backend(wide, longer).name == "deferred"
        assert choose_backend(wide.float(), wide.float()).name == "deferred"

    @pytest.mark.parametrize(
        ("width", "dtype", "found", "obstacle"),
        [
            (300, torch.float32, (9, 0), "takes heads up to 256 wide, got 300"),
            (64, torch.float64, (9, 0), "computes in float32 at most on a GPU, got float64"),
            (64, torch.float32, (7, 5), "needs a GPU of compute capability 8.0 or more, got 7.5"),
            (64, torch.float32, None, "needs triton, which is not installed"),
        ],
    )
    def test_on_cuda_the_reason_says_what_stood_in_the_way_of_triton(self, monkeypatch, width, dtype, found, obstacle):
        monkeypatch.setattr(choice, "installed", lambda: found is not None)
        monkeypatch.setattr(choice, "interpreting", lambda: False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
        with FakeTensorMode():
            for length, name in ((64, "deferred"), (1024, "blocked")):
                query = torch.empty(1, 1, length, width, dtype=dtype, device="cuda")
                taken = choose_backend(query, query)
                assert taken.name == name
                assert f"; the triton backend {obstacle}" in taken.reason
                with pytest.raises(ValueError, match=rf"{obstacle}.*; backend='auto' takes one that can"):
                    choose_backend(query, query, backend="triton")
        assert "triton" not in choose_backend(short := torch.empty(1, 1, 64, 8), short).reason

    def test_float16_never_keeps_undivided_products_in_its_own_range(self):
        short = torch.empty(1, 1, 64, 8, dtype=torch.float16)
        assert choose_backend(short, short).name == "blocked"

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at the first jvp
    def test_transforms_of_functions_get_plain_operations(self):
        query, key, value = Case(batch=1, queries=300, keys=300).inputs()
        alone = relu_attention(query, key, value)[0]
        assert choose_backend(query, key).name == "blocked"
        mapped = torch.func.vmap(lambda q, k, v: relu_attention(q, k, v)[0])(*(t[None] for t in (query, key, value)))
        torch.testing.assert_close(mapped[0], alone)
        _, tangent = torch.func.jvp(lambda v: relu_attention(query, key, v)[0], (value,), (value,))
        torch.testing.assert_close(tangent, alone)  # of degree 1 in the values

    def test_autocast_gives_its_dtype(self):
        query, key, value = Case(queries=600, keys=600).inputs(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = relu_attention(query, key, value)
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), relu_attention(query, key, value)[0], atol=2e-2, rtol=2e-2)


Q, K4, MASK = torch.zeros(2, 4, 6, 8), torch.zeros(2, 2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
ONE = torch.zeros(1, 1, 6, 8)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "sentence"),
    [
        ((Q, K4, K4), {"backend": "flash"}, ValueError, "backend must be one of"),
        ((Q, K4, K4), {"backend": "deferred", "need_weights": True}, ValueError, "never forms the weights"),
        ((Q, K4, K4), {"backend": "blocked", "need_weights": True}, ValueError, "never forms the weights"),
        ((Q[0], K4, K4), {}, ValueError, "four dimensions"),
        ((Q, K4, K4[:, :, :5]), {}, ValueError, "one shape"),
        ((Q, K4[:1], K4[:1]), {}, ValueError, "same batch size"),
        ((Q, K4[..., :4], K4[..., :4]), {}, ValueError, "same batch size and head width"),
        ((Q[:, :3], K4, K4), {}, ValueError, "multiple"),
        ((Q[..., :0], K4[..., :0], K4[..., :0]), {}, ValueError, "at least 1 wide"),
        ((Q, K4.double(), K4), {}, TypeError, "share a dtype"),
        ((Q.int(), K4, K4), {}, TypeError, "must be float32"),
        ((Q, K4.to("meta"), K4), {}, ValueError, "is on meta"),
        ((Q, K4, K4), {"mask": torch.zeros(2, 6)}, TypeError, "boolean"),
        ((Q, K4, K4), {"mask": MASK[0]}, ValueError, r"\[B, T\]"),
        ((Q, K4, K4), {"mask": MASK[:, :5]}, ValueError, r"broadcast to \[B, H, S, T\] = \[2, 4, 6, 6\]"),
        ((Q, K4, K4), {"dropout_p": 1.0}, ValueError, "probability"),
        ((Q, K4, K4), {"window": 0}, ValueError, "at least 1"),
        ((Q, K4, K4), {"seqlens": torch.tensor([1, 7])}, ValueError, "between 0 and the 6"),
        ((Q, K4, K4), {"seqlens": torch.tensor([1])}, ValueError, "one length per sequence"),
        ((Q, K4, K4), {"seqlens": torch.tensor([1.0, 2.0])}, TypeError, "int32 or int64"),
        ((Q, K4, K4), {"cu_seqlens": torch.tensor([0, 6])}, ValueError, "in a batch of 1"),
        ((ONE, ONE, ONE), {"cu_seqlens": torch.tensor([0, 5])}, ValueError, "cover the batch"),
        ((ONE, ONE, ONE), {"cu_seqlens": torch.tensor([1, 6])}, ValueError, "cover the batch"),
        ((ONE, ONE, ONE), {"cu_seqlens": torch.tensor([0, 4, 3, 6])}, ValueError, "cover the batch"),
        ((ONE, ONE, ONE), {"cu_seqlens": torch.tensor([0])}, ValueError, r"\[sequences \+ 1\]"),
        ((ONE, ONE, ONE), {"cu_seqlens": torch.tensor([0, 6]), "seqlens": torch.tensor([6])}, ValueError, "not both"),
        ((Q.numpy(), K4, K4), {}, TypeError, "query must be a torch.Tensor, got ndarray"),
        ((Q, K4, K4.tolist()), {}, TypeError, "value must be a torch.Tensor, got list"),
        ((Q, K4, K4), {"mask": MASK.tolist()}, TypeError, "mask must be a torch.Tensor, got list"),
        ((Q, K4, K4), {"seqlens": [6, 6]}, TypeError, "seqlens must be a torch.Tensor, got list"),
        ((ONE, ONE, ONE), {"cu_seqlens": [0, 6]}, TypeError, "cu_seqlens must be a torch.Tensor, got list"),
        ((Q, K4, K4), {"window": 2.5}, TypeError, "must be an integer or None, got 2.5"),
        ((Q, K4, K4), {"window": True}, TypeError, "must be an integer or None, got True"),
        ((Q, K4, K4), {"dropout_p": "0.1"}, TypeError, "must be a number, got '0.1'"),
        ((Q, K4, K4), {"dropout_p": None}, TypeError, "must be a number, got None"),
        ((torch.zeros(1, 1, 2, 257),) * 3, {"backend": "triton"}, ValueError, "up to 256 wide"),
    ],
)
def test_errors_come_first_and_teach(inputs, options, error, sentence):
    with pytest.raises(error, match=sentence):
        relu_attention(*inputs, **options)


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(choice, "installed", lambda: False)
    with pytest.raises(ValueError, match=r"not installed: pip install 'sibert\[triton\]'"):
        relu_attention(Q, K4, K4, backend="triton")
    monkeypatch.setattr(choice, "installed", lambda: True)
    monkeypatch.setattr(choice, "interpreting", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        relu_attention(Q, K4, K4, backend="triton")


class Attends(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.project, self.backend = torch.nn.Linear(16, 48), backend

    def forward(self, x_BTD):
        query, key, value = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.project(x_BTD).chunk(3, -1))
        mixed, _ = relu_attention(query, key, value, causal=True, dropout_p=0.1, backend=self.backend)
        return mixed.transpose(1, 2).flatten(-2)


def assert_one_graph(backend, length):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter, module, x = CompileCounter(), Attends(backend), torch.randn(2, length, 16)
    results = []
    for attend in (module, torch.compile(module, fullgraph=True, backend=counter)):
        torch.manual_seed(0)
        module.zero_grad()
        output = attend(x)
        output.square().sum().backward()
        results.append((output.detach(), module.project.weight.grad.clone()))
    assert counter.frame_count == 1
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_sizes_may_be_symbols_beside_a_mask_of_fixed_shape():
    torch._dynamo.reset()
    q, k, v = (torch.randn(3, 2, 7, 4) for _ in range(3))
    mask = torch.ones(3, 7, dtype=torch.bool)
    spans = key_spans(7, 7, q.device, causal=True)
    for tensor in (q, k, v):
        torch._dynamo.maybe_mark_dynamic(tensor, (0, 2))
    compiled = torch.compile(relu_attention, fullgraph=True, backend="eager")
    for options in ({"mask": mask}, {"spans": spans}):
        torch.testing.assert_close(compiled(q, k, v, **options)[0], relu_attention(q, k, v, **options)[0])


def test_torch_compile_keeps_one_graph():
    assert_one_graph("blocked", 300)


@needs_triton
def test_torch_compile_keeps_one_graph_where_auto_takes_triton(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    torch._dynamo.reset()
    graphs = []

    def keep(module, _):
        graphs.append(str(module.graph))
        return module.forward

    attend = torch.compile(lambda q: relu_attention(q, q, q)[0], fullgraph=True, backend=keep)
    with FakeTensorMode():
        query = torch.empty(1, 2, 20, 16, device="cuda")
        assert attend(query).shape == query.shape
    assert [graph.count("sibert.relu_attention_triton") for graph in graphs] == [1]


def assert_rules_of_torch(operator, batch=1, groups=1):
    query, key, value = Case(batch=batch, groups=groups, queries=5, keys=7, width=3).inputs()
    mask = torch.rand(batch, 1, 5, 7) < 0.7
    spans = key_spans(5, 7, torch.device("cpu"), causal=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    for arguments in ((mask, *spans, torch.tensor([3]), 0.2), (None, None, None, None, 0.0)):
        torch.library.opcheck(operator, (query, key, value, *arguments), test_utils=checks)


@pytest.mark.parametrize(("batch", "groups"), [(1, 1), (1, 2), (2, 2)])  # which of them are views differs
def test_the_operator_keeps_the_rules_of_torch(batch, groups):
    assert_rules_of_torch(blocked_relu_attention, batch, groups)


@pytest.mark.parametrize("backend", ["reference", "deferred", "blocked"])
def test_without_keys_dropout_leaves_zero(backend):
    query, nothing = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 0, 4)
    assert not relu_attention(query, nothing, nothing, dropout_p=0.5, backend=backend)[0].any()
