"""A loss without logits is the loss with them."""

import pytest
import torch
from torch.nn import functional as F

from sibert.models import SibertForMaskedLM, SibertForPreTraining, chunked_loss
from sibert.models.chunked_loss import chunked_cross_entropy
from sibert.models.masked_lm_loss import IGNORED
from tests.models.builders import deep_config

P, D, V = 13, 5, 11


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator).to(dtype) for shape in ((P, D), (V, D), (V,))]
    labels = torch.randint(0, V, (P,), generator=generator)
    labels[[2, 7]] = IGNORED
    return [tensor.requires_grad_() for tensor in tensors], labels


@pytest.mark.parametrize("chunk", [1, 4, P, 100, None])
def test_loss_and_gradients_are_those_of_torchs_cross_entropy(chunk):
    tensors, labels = inputs()
    expected = F.cross_entropy(F.linear(*tensors), labels, ignore_index=IGNORED, reduction="sum")
    found = chunked_cross_entropy(*tensors, labels, chunk)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, tensors), torch.autograd.grad(3 * expected, tensors), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_without_targets_it_is_zero_and_so_are_its_gradients():
    tensors, labels = inputs()
    total = chunked_cross_entropy(*tensors, torch.full_like(labels, IGNORED), 4)
    assert total == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(total, tensors))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_nobody_can_ask_for_are_not_computed(mode):
    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        outer = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.outer += func is torch.ops.aten.addmm_.default
            return func(*args, **(kwargs or {}))

    def products():
        tensors, labels = inputs()
        with Products() as counted:
            chunked_cross_entropy(*tensors, labels, 5)
        return counted.outer

    assert products() == 3
    with mode():
        assert products() == 0


def test_no_tensor_is_larger_than_a_chunk_or_the_decoder():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (V,) and result.dim() == 2:
                self.rows = max(self.rows, len(result))
            return result

    def rows(loss):
        tensors, labels = inputs()
        with Largest() as watched:
            loss(tensors, labels).backward()
        return watched.rows

    assert rows(lambda tensors, labels: chunked_cross_entropy(*tensors, labels, 3)) <= D  # D: the decoder, transposed
    assert rows(lambda tensors, labels: F.cross_entropy(F.linear(*tensors), labels)) == P


@pytest.mark.parametrize("invariance", ["joint", "matrix", "row"])
@pytest.mark.parametrize("kind", [SibertForMaskedLM, SibertForPreTraining])
@pytest.mark.parametrize("masked", [False, True])
def test_a_model_asked_for_no_logits_has_the_same_loss_and_gradients(kind, invariance, masked, monkeypatch):
    """Of the scale of the logits, too."""
    monkeypatch.setattr(chunked_loss, "LOGITS", 20)
    torch.manual_seed(0)
    config = deep_config(
        num_hidden_layers=1, invariance=invariance, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = kind(config).double()
    ids = torch.randint(0, config.vocab_size, (3, 8))
    batch = {"input_ids": ids, "labels": ids, "num_items_in_batch": 20}
    if masked:
        batch |= {"masked_positions": torch.tensor([[1, 5]] * 3), "labels": ids[:, [1, 5]]}
    if kind is SibertForPreTraining:
        batch["next_sentence_label"] = torch.tensor([0, 1, 1])

    def run(**options):
        model.zero_grad()
        outputs = model(**batch, **options)
        outputs.loss.backward()
        return outputs, {name: p.grad.clone() for name, p in model.named_parameters()}

    with_logits, expected = run()
    without, found = run(return_logits=False)
    name = "logits" if kind is SibertForMaskedLM else "prediction_logits"
    assert with_logits[name].shape[-1] == config.vocab_size
    assert without.get(name) is None
    torch.testing.assert_close(without.loss, with_logits.loss, rtol=1e-13, atol=0)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-13)


def test_no_logits_and_no_labels_is_refused():
    model = SibertForMaskedLM(deep_config(num_hidden_layers=1, invariance="matrix"))
    with pytest.raises(ValueError, match="return_logits=False needs labels"):
        model(torch.ones(1, 4).long(), return_logits=False)


def test_under_autocast_the_loss_is_that_of_the_logits_to_rounding():
    tensors, labels = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(F.linear(*tensors).float(), labels, ignore_index=IGNORED, reduction="sum")
        found = chunked_cross_entropy(*tensors, labels, 4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    found.backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors)
