"""The benchmarks of speed and memory run from end to end at toy size, and refuse to report on what is wrong."""

import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TABLE = BENCHMARKS.parent / "docs" / "figures" / "performance.py"
CPU = torch.device("cpu")


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script; how many threads torch has is put back."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.fixture
def smoke(benchmark, monkeypatch, capsys):
    """Runs a script at toy size in this process, without compiling, and gives what it prints."""

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke", *options])
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        benchmark(name).main()
        return capsys.readouterr().out

    return run


TURNS = ("--rounds", "4", "--patience", "0")


@pytest.mark.slow
def test_attention_is_compared_by_every_backend_the_kernels_included():
    printed = subprocess.run(
        [sys.executable, str(BENCHMARKS / "attention.py"), "--smoke", *TURNS],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    ).stdout
    for name in ("reference", "blocked", "triton", "SDPA"):
        assert printed.count(f"{name} ") >= 6
    assert printed.count(" ms, deferred; faster than: ") == 6  # what "auto" takes, timed under that name alone
    assert printed.count("packed  ") == 2
    assert printed.count("FlexAttention: not available") == 1  # backward
    assert printed.count("SDPA flash: not available") == 2


def test_growth_is_fitted(smoke):
    assert smoke("growth", *TURNS).count("exponent") == 4


def test_every_kind_of_group_is_compared_with_the_faster_adamw(smoke):
    printed = smoke("optimizer_step", *TURNS)
    for name in ("ClippedSGD row", "ClippedSGD matrix", "ClippedSGD joint", "SGD fused", "copy"):
        assert f"{name:22s} median" in printed


def test_memory_is_counted_by_the_byte(smoke):
    printed = smoke("memory")
    assert "16.00 bytes a parameter, 1.000x" in printed
    assert printed.count("bytes a parameter") == 5


def test_the_data_path_is_compared_with_the_model(smoke):
    assert smoke("data_path", *TURNS).count(" times\n") == 4


@pytest.mark.slow
def test_ragged_rows_are_fine_tuned_padded_and_flat(smoke):
    printed = smoke("finetuning_step", *TURNS)
    assert printed.count("times as fast as the peer") == 6


def test_pre_training_is_compared_with_the_peer(smoke):
    assert smoke("pretraining_throughput", *TURNS).count("of the peer") == 4


@pytest.mark.parametrize("layout", ["full", "padded", "packed"])
def test_attention_that_is_wrong_is_not_timed(benchmark, layout):
    attention, contestants = benchmark("attention"), benchmark("attention_contestants")
    case = contestants.Case(1 if layout == "packed" else 2, 2, 40, 8, "float32", layout)
    tensors = contestants.Tensors(case, CPU)
    right, peer = contestants.ours(case, CPU, "blocked"), contestants.softmax(case, CPU, None)
    errors, _ = attention.gate(case, tensors, {"right": right, "SDPA": peer})
    assert max(errors.values()) < 1e-5

    def wrong(query, key, value, by=1.01):
        return torch.cat([right(query, key, value)[:, :, :-1], by * right(query, key, value)[:, :, -1:]], dim=2)

    for name, one in (("ours", wrong), ("nan", functools.partial(wrong, by=torch.nan)), ("SDPA", right)):
        with pytest.raises(SystemExit, match=f"{name} is wrong by"):
            attention.gate(case, tensors, {name: one})


def test_attention_with_wrong_gradients_is_not_timed(benchmark):
    attention, contestants = benchmark("attention"), benchmark("attention_contestants")
    case = contestants.Case(2, 2, 40, 8, "float32", "padded")
    right = contestants.ours(case, CPU, "blocked")

    def wrong(query, key, value):
        return right(query.detach(), key, value) + 0 * query

    with pytest.raises(SystemExit, match=r"wrong is wrong by .* forward and backward"):
        attention.gate(case, contestants.Tensors(case, CPU), {"wrong": wrong})


def test_no_case_is_too_long_for_the_gate(benchmark, monkeypatch):
    attention, contestants = benchmark("attention"), benchmark("attention_contestants")
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 1)  # as if one head were all that fits
    case = contestants.Case(1, 3, 60, 8, "float32", "packed")
    tensors = contestants.Tensors(case, CPU)
    places = [place for place, _ in attention.expected(case, tensors)]
    assert len(places) == 3 * len(case.seqlens)
    seen = torch.zeros_like(tensors.gradient)
    for place in places:
        seen[place] += 1
    assert (seen == 1).all()


def test_a_peer_without_a_kernel_is_named_and_one_of_ours_fails(benchmark):
    attention, contestants = benchmark("attention"), benchmark("attention_contestants")
    case = contestants.Case(2, 2, 20, 8, "float32")
    tensors, auto = contestants.Tensors(case, CPU), contestants.ours(case, CPU, "auto")

    def missing(*_):
        raise RuntimeError("no kernel here\nat all")

    errors, absent = attention.gate(case, tensors, {"auto": auto, "SDPA cuDNN": missing})
    assert set(errors) == {"auto"}
    for reasons in absent.values():
        assert reasons == {"SDPA cuDNN": "not available: no kernel here at all"}
    with pytest.raises(RuntimeError, match="no kernel here"):
        attention.gate(case, tensors, {"auto": missing})


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layout", ["full", "padded", "packed"])
def test_flex_attention_is_given_our_definition(benchmark, monkeypatch, layout):
    contestants = benchmark("attention_contestants")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    case = contestants.Case(1 if layout == "packed" else 2, 2, 40, 8, "float32", layout)
    tensors = contestants.Tensors(case, CPU)
    (flex,), (ours,) = (
        tensors.forward(make) for make in (contestants.flex(case, CPU), contestants.ours(case, CPU, "reference"))
    )
    torch.testing.assert_close(flex, ours)


def test_the_packed_peer_is_given_sequences_end_to_end(benchmark, monkeypatch):
    contestants = benchmark("attention_contestants")
    varlen = importlib.import_module("torch.nn.attention.varlen")
    case = contestants.Case(1, 2, 40, 8, "float32", "packed")

    def by_sequence(query, key, value, bounds, key_bounds, longest, longest_key):
        assert bounds.equal(key_bounds)
        assert longest == longest_key == bounds.diff().max()
        heads = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
        return contestants.one_by_one(bounds.diff().tolist(), *heads)[0].transpose(0, 1)

    monkeypatch.setattr(varlen, "varlen_attn", by_sequence)
    tensors = contestants.Tensors(case, CPU)
    (packed,) = tensors.forward(contestants.packed_softmax(case, CPU))
    (wanted,) = tensors.forward(contestants.softmax(case, CPU, None))
    assert packed.equal(wanted)


def test_packed_sequences_cover_the_tokens(benchmark):
    for length in (1, 7, 96, 4096):
        case = benchmark("attention_contestants").Case(1, 1, length, 8, "float32", "packed")
        assert sum(case.seqlens) == length
        assert min(case.seqlens) > 0


def test_a_power_law_is_found(benchmark):
    sizes = [64, 128, 256, 512]
    assert benchmark("attention").slope(sizes, [3.0 * size**1.7 for size in sizes]) == pytest.approx(1.7)


@pytest.mark.parametrize("kind", ["joint", "matrix", "row"])
def test_an_optimizer_step_that_is_wrong_is_not_timed(benchmark, monkeypatch, kind):
    module = benchmark("optimizer_step")
    module.check_agreement(CPU)

    class Wrong(module.ClippedSGD):
        def step(self):
            super().step()
            of_kind = "joint" if len(self.param_groups) == 1 else "row" if self.param_groups[0]["rows"] else "matrix"
            if self.param_groups[0]["implementation"] == "fused" and of_kind == kind:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].mul_(1.001)

    monkeypatch.setattr(module, "ClippedSGD", Wrong)
    with pytest.raises(SystemExit, match=f"ClippedSGD {kind}: fused does not do what the reference does"):
        module.check_agreement(CPU)


def test_a_model_that_does_not_train_is_not_timed(benchmark):
    growth = benchmark("growth")
    growth.check_losses(4.2, 4.3, 4.16)
    for losses in ((6.0, 4.3), (4.2, float("nan"))):
        with pytest.raises(SystemExit, match="not timed"):
            growth.check_losses(*losses, 4.16)


def test_masking_that_is_wrong_is_not_timed(benchmark):
    data_path = benchmark("data_path")
    ids = torch.arange(5, 5 + data_path.LENGTH).repeat(2, 1)
    positions = torch.arange(0, 114, 6).repeat(2, 1)
    batch = {"attention_mask": torch.ones_like(ids), "masked_positions": positions, "labels": ids.gather(1, positions)}
    batch["input_ids"] = ids.scatter(1, positions, 4)
    data_path.check_masking(batch, ids)
    few = {"labels": batch["labels"].where(positions < 50, -100)}
    for wrong, sentence in (
        ({"input_ids": batch["input_ids"][:1]}, "wrong shapes"),
        (few, "is to be predicted"),
        ({"input_ids": batch["input_ids"] + 1}, "were changed"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            data_path.check_masking(batch | wrong, ids)


def test_memory_that_is_miscounted_is_not_reported(benchmark):
    memory = benchmark("memory")
    with pytest.raises(SystemExit, match="counts 11 bytes"):
        memory.check_weights(11, [torch.zeros(3)])
    found = {name: {"losses": [10.3, 9.0]} for name in memory.CONTESTANTS}
    memory.check_release(found)
    found["with release and bfloat16 weights"]["losses"] = [10.3, 9.1]
    with pytest.raises(SystemExit, match="with release and bfloat16 weights: losses"):
        memory.check_release(found)


def test_nobody_always_follows_the_same_one(benchmark):
    called = []
    steps = {name: functools.partial(called.append, name) for name in "abc"}
    seconds, _ = benchmark("alternation").alternate(steps, CPU, rounds=40, patience=0.0)
    turns = ["".join(called[k : k + 3]) for k in range(3, len(called), 3)]
    assert {len(values) for values in seconds.values()} == {len(turns)} == {40}
    assert set(turns) == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_a_stored_timing_names_its_versions_and_its_commit(benchmark, monkeypatch):
    alternation = benchmark("alternation")
    found = alternation.machine(CPU)
    assert found["torch"] == torch.__version__
    assert "transformers" in found
    monkeypatch.setenv("PATH", "")
    assert alternation.machine(CPU)["commit"] is None


@pytest.fixture
def table(monkeypatch, tmp_path):
    """The script that makes the README's table, and a folder for results."""
    specification = importlib.util.spec_from_file_location("performance_table", TABLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def store(folder, name, **values):
    (folder / f"{name}.json").write_text(json.dumps({"device": "H100", **values}))


def test_what_is_not_measured_says_by_which_command(table):
    rows = [row for part in table.PARTS for row in part()]
    assert len(rows) == 16
    for _, _, measured, verdict in rows:
        assert measured.startswith("not measured: `python benchmarks/")
        assert verdict == ""
        script = measured.split("benchmarks/")[1].split()[0].strip("`")
        assert (BENCHMARKS / script).exists()


@pytest.mark.parametrize(("ratio", "word"), [(0.754, "met"), (0.756, "missed")])
def test_a_verdict_agrees_with_the_number_beside_it(table, tmp_path, ratio, word):
    kinds = ("ClippedSGD row", "ClippedSGD matrix", "ClippedSGD joint")
    store(
        tmp_path,
        "optimizer_step_cuda",
        ratio_of_medians={**dict.fromkeys(kinds, ratio), "SGD fused": 0.4},
        targets=dict.fromkeys(kinds, 0.75),
        fastest_adamw="AdamW fused",
        share_of_copy_bandwidth=dict(zip(kinds, (0.844, 0.846, 1.1), strict=True)),
    )
    speed, share = (row for row in table.optimizer() if "not measured" not in row[2])
    assert speed[2].startswith(", ".join(3 * [f"{ratio:.2f}"]))
    assert speed[3] == word
    assert share[2:] == ("0.84, 0.85, 1.10", "missed, met, met")


def test_results_of_a_gpu_fill_their_rows(table, tmp_path):
    def case(length, flash, flex, layout="full"):
        peers = {"SDPA flash": flash, "FlexAttention": flex, "SDPA cuDNN": 0.8}
        one = {"speed_relative_to": peers, "tera_operations_per_second": {"auto": 499.6}}
        return {"length": length, "width": 128, "layout": layout, "forward": one, "forward and backward": one}

    lone = case(512, 2.0, 2.0, "padded")
    for what in ("forward", "forward and backward"):
        lone[what]["speed_relative_to"] = {"FlexAttention": 0.99}
    store(tmp_path, "attention_cuda", cases=[case(512, 1.2, 1.4), case(8192, 1.4, 1.5), lone])
    flash, flex, cudnn, rate = table.attention_on_gpu()
    assert flash[2:] == ("1.20, 1.20; 1.40, 1.40", "missed")
    assert flex[2:] == ("0.99, 0.99 (3 of 3 cases)", "missed")
    assert cudnn[2:] == ("0.80, 0.80 (2 of 3 cases)", "")
    assert rate[2:] == ("500", "met")

    store(
        tmp_path,
        "pretraining_throughput_cuda",
        speed_relative_to_peer={"BERT": 1.0, "the same, predicted positions only": 1.1, "SIBERT matrix": 1.29},
        model_flop_utilisation={"SIBERT matrix": 0.41},
    )
    _, speed, used = table.throughput()
    assert speed[2].startswith("matrix 1.29 (1.17) (in brackets")
    assert (speed[3], used[2], used[3]) == ("missed", "41 %", "met")


def test_the_table_in_the_readme_is_that_of_the_stored_results(table, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", BENCHMARKS / "results")
    shown = (table.ROOT / "README.md").read_text(encoding="utf-8").split(table.BEGIN)[1].split(table.END)[0]
    assert shown.strip() == table.make_table(), "make it anew: python docs/figures/performance.py"
