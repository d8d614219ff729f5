"""The fast paths, compiled or not, train as the definitions do."""

import dataclasses

import pytest
import torch
from torch._dynamo.utils import counters

from sibert.models import SibertConfig, SibertForMaskedLM
from sibert.ops.relu_attention import choice
from sibert.optim import build_optimizer
from sibert.training import run_pretraining
from tests.training.runs import losses, records


def losses_in_float64(invariance, fast, steps=200, intrinsic_lr=1e-3):
    """Of a small model that learns one sequence after the other; everything fast, or everything as it is defined."""
    torch.manual_seed(0)
    config = SibertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12, invariance=invariance, type_vocab_size=0,
    )  # fmt: skip
    model = SibertForMaskedLM(config).double()
    if fast:
        model.sibert.embeddings.one_gradient = invariance != "joint"
    else:
        model.set_attention_backend("reference")
    optimizer = build_optimizer(model, intrinsic_lr=intrinsic_lr, implementation="fused" if fast else "reference")
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        ids = torch.randint(5, 40, (4, 12), generator=generator)
        places = torch.rand(4, 12, generator=generator).argsort(dim=1)[:, :3]
        loss = model(ids, labels=ids.gather(1, places), masked_positions=places, return_logits=not fast).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("invariance", ["joint", "matrix", "row"])
def test_fast_paths_and_definitions_agree_over_two_hundred_steps(invariance, monkeypatch):
    monkeypatch.setattr(choice, "SHORT", 0)  # blocks, however short the sequences
    fast, defined = (losses_in_float64(invariance, fast) for fast in (True, False))
    assert fast == pytest.approx(defined, rel=1e-9)
    assert fast[-1] != fast[0]


def test_the_comparison_would_see_a_difference():
    """The negative twin: one part in a thousand of the learning rate."""
    one, other = (losses_in_float64("matrix", True, 20, intrinsic_lr) for intrinsic_lr in (1e-3, 1.001e-3))
    assert one != pytest.approx(other, rel=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_a_compiled_run_is_one_graph_and_the_same_run(recipe, tmp_path):
    chosen = recipe(steps=6, eval_every=3, log_every=1)
    run_pretraining(chosen, tmp_path / "eager")
    torch.compiler.reset()
    counters.clear()
    run_pretraining(dataclasses.replace(chosen, compile=True), tmp_path / "compiled")
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
    for one, other in zip(records(tmp_path / "compiled", "eval"), records(tmp_path / "eager", "eval"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    SibertForMaskedLM.from_pretrained(tmp_path / "compiled")


def test_compiling_without_a_compiler_is_refused_in_a_sentence(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: _raise())
    with pytest.raises(ValueError, match=r"--compile needs a C\+\+ compiler"):
        run_pretraining(recipe(compile=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _raise():
    from torch._inductor.exc import InvalidCxxCompiler

    raise InvalidCxxCompiler
