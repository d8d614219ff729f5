"""The harness behind the headline table: everything else is equal, and it measures what it says."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from baselines import NormalizedBert, SinkGD
from contestants import CONTESTANTS, Sizes, clipped_sgd, muon
from corpus import Corpus
from report import IN_A_LAYER, batch_table, finals, moved_apart, robustness_table, spread, tokens_until, trunk_angles
from study import ADAMW, OURS, RECIPES, ROBUSTNESS, Study
from study import main as study_main
from trial import Trial, angles, run_trial

from sibert.models import SibertConfig, SibertForMaskedLM
from sibert.training.metrics import optimizer_state_bytes

SMALL = Sizes(1, 16, 2, 32)
WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "prstvz"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    generator = np.random.default_rng(0)
    texts = [f"{number} " + " ".join(generator.choice(WORDS, size=80)) for number in range(300)]
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIBERT_CACHE", str(folder / "cache"))
        yield str(folder / "text.txt")


def small_trial(contestant, **fields):
    fields = {"tokens": 4096, "tokens_per_step": 512, "sizes": SMALL, "sources": ("text.txt",)} | fields
    rates = CONTESTANTS[contestant].rates
    return Trial(contestant=contestant, rate=fields.pop("rate", rates[len(rates) // 2]), **fields)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_contestant_trains_and_keeps_the_state_it_is_said_to_keep(source, name):
    record = json.loads(json.dumps(run_trial(small_trial(name), [source])))
    assert math.isfinite(record["loss"])
    assert len(record["curve"]) == 8
    assert Trial.of(record["trial"]) == small_trial(name)
    bytes_per_parameter = record["optimizer_state_bytes"] / record["parameters"]
    if name in ("bert-sgd", "bert-clipped-sgd"):
        assert bytes_per_parameter == 0
    elif name in (
        "sibert-matrix",
        "sibert-matrix-spectral",
        "sibert-row",
    ):  # AdamW keeps two numbers for each bias and for the logits' scale
        vectors = [p.numel() for p in CONTESTANTS[name].model(Corpus([source]), SMALL).parameters() if p.dim() < 2]
        assert record["optimizer_state_bytes"] < 8 * sum(vectors) + 8 * record["parameters"] / 16
    elif name.endswith(("adamw", "adam", "lamb")):
        assert bytes_per_parameter == pytest.approx(8, rel=0.01)


def test_a_trial_is_repeatable(source):
    first, second = (run_trial(small_trial("sibert-row"), [source]) for _ in range(2))
    assert first["loss"] == second["loss"]
    assert first["rotation"] == second["rotation"]


def test_bf16_weights_are_those_of_the_matrices_alone(source):
    """AdamW's state has the type of what it is for: two bytes a number for matrices of the encoder, else four."""
    name = "bert-modern-adamw"
    model = CONTESTANTS[name].model(Corpus([source]), SMALL)
    matrices = sum(p.numel() for p in model.base_model.parameters() if p.dim() > 1)
    rest = sum(p.numel() for p in model.parameters()) - matrices
    plain, weights, everything = (
        run_trial(small_trial(name, options=options), [source])
        for options in ({}, {"precision": "bf16-weights"}, {"dtype": "bfloat16"})
    )
    steps = plain["optimizer_state_bytes"] - 8 * (matrices + rest)  # AdamW's counter, a number for each parameter
    assert weights["optimizer_state_bytes"] == steps + 4 * matrices + 8 * rest
    assert everything["optimizer_state_bytes"] == steps + 4 * (matrices + rest)
    assert weights["loss"] not in (plain["loss"], everything["loss"])
    assert weights["loss"] == pytest.approx(plain["loss"], abs=0.1)


def test_two_batch_sizes_see_the_same_sequences(source):
    corpus = Corpus([source])
    large = corpus.batch(0, 1, 8)
    small = [corpus.batch(0, step, 4) for step in (2, 3)]
    # Batches are as long as their longest sequence.
    for row in range(8):
        ours = small[row // 4]["input_ids"][row % 4]
        length = min(len(ours), large["input_ids"].shape[1])
        assert torch.equal(large["input_ids"][row, :length], ours[:length])


def test_angles_are_those_of_a_known_rotation():
    c, s = math.cos(0.01), math.sin(0.01)
    old = torch.eye(2, dtype=torch.float64)
    new = 3.0 * old @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)  # scale does not count
    assert angles({"w": old}, {"w": new})["w"] == [0.01] * 4


def test_a_row_of_zeros_has_no_angle_and_the_others_have_theirs():
    c, s = math.cos(0.01), math.sin(0.01)
    old = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    new = old @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    assert angles({"w": old}, {"w": new})["w"] == [0.01] * 4
    nothing = torch.zeros(3, 2, dtype=torch.float64)
    assert angles({"w": nothing}, {"w": nothing})["w"] == [None] * 4  # and no NaN, which JSON has not


def test_matrices_of_the_layers_are_not_told_by_the_name_of_the_model():
    names = ["roberta_prelayernorm.embeddings.word.weight", "roberta_prelayernorm.encoder.layer.0.dense.weight"]
    names += ["model.layers.11.mlp.Wi.weight", "layers.0.query.weight", "decoder.weight"]
    record = {"trial": {"tokens": 8, "tokens_per_step": 2}, "rotation": {"2": dict.fromkeys(names, [0.1] * 4)}}
    assert list(trunk_angles(record)) == names[1:4]


@pytest.mark.parametrize(
    ("heights", "places"),
    [
        ([], []),
        ([1.0, 3.0, 3.5], [1.0, 2.75, 3.75]),
        ([0.0, 2.0, 2.0, 2.5], [0.0, 1.166667, 2.166667, 3.166667]),
        ([0.0, 0.9, 2.0], [-0.05, 0.95, 2.0]),
        ([0.0, 1.0, 1.1, 1.1], [-0.7, 0.3, 1.3, 2.3]),  # the last three meet the first one
    ],
)
def test_names_of_lines_are_moved_apart_as_little_as_it_takes(heights, places):
    assert moved_apart(heights, 1.0) == pytest.approx(places, abs=1e-6)


def test_a_spread_is_shown_only_if_all_of_it_was_measured():
    assert spread([0.01, -0.02, 0.0]) == "0.0300"
    assert spread([0.01, 0.02]) == "0.0200"  # that of no change counts
    assert spread([0.01, math.nan]) == spread([math.nan] * 2) == ""
    assert spread([0.01, math.inf]) == "diverged"


@pytest.mark.parametrize(("target", "tokens"), [(5.0, 10.0), (4.5, 15.0), (3.0, 30.0), (2.9, None), (math.inf, 10.0)])
def test_tokens_until_a_loss_are_interpolated(target, tokens):
    assert tokens_until([(10, 5.0), (20, 4.0), (30, 3.0)], target) == tokens


def test_a_misjudged_learning_rate_moves_eta_alone():
    def step(**options):
        torch.manual_seed(0)
        model = SibertForMaskedLM(SibertConfig(vocab_size=40, **vars(SMALL), max_position_embeddings=8))
        optimizer = clipped_sgd(model, 1e-3, **options)
        model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        optimizer.step()
        return {g["name"]: (g["eta"].item(), g["intrinsic_lr"]) for g in optimizer.param_groups if g["scale_invariant"]}

    right, wrong = step(), step(trunk_lr_factor=100.0)
    for name, (eta, intrinsic_lr) in right.items():
        factor = 1.0 if "embeddings" in name else 100.0
        assert wrong[name] == (pytest.approx(factor * eta), intrinsic_lr)


def test_momentum_is_an_exponential_mean_and_its_state_is_counted():
    torch.manual_seed(0)
    config = SibertConfig(vocab_size=40, **vars(SMALL), max_position_embeddings=8, invariance="matrix")
    model = SibertForMaskedLM(config)
    optimizer = clipped_sgd(model, 1e-3, momentum=0.75)
    groups = model.scale_invariant_groups().values()
    matrices = {parameter for group in groups for _, parameter in group.members}
    before = sum(state["momentum"].nbytes for state in optimizer.state.values() if "momentum" in state)
    for value in (1.0, 3.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.step()
    assert before == 0
    for parameter in matrices:
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.75 * 1.0 + 0.25 * 3.0))
    after = sum(state["momentum"].nbytes for state in optimizer.state.values() if "momentum" in state)
    assert after == 4 * sum(p.numel() for p in matrices)
    assert optimizer_state_bytes(optimizer) > after


def test_sinkgd_steps_have_rows_and_columns_of_equal_norm():
    w = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    w.grad = torch.randn(6, 4, dtype=torch.float64)
    SinkGD([w], lr=1.0, iterations=50).step()
    torch.testing.assert_close(w.detach().norm(dim=1), torch.full((6,), 2.0, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(w.detach().norm(dim=0), torch.full((4,), 6**0.5, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("momentum", "forgets"), [(0.0, True), (0.95, False)])
def test_muon_without_momentum_forgets_the_last_gradient(momentum, forgets):
    def step(*gradients):
        torch.manual_seed(0)
        model = SibertForMaskedLM(SibertConfig(vocab_size=40, **vars(SMALL), max_position_embeddings=8))
        optimizer, start = muon(model, 0.01, momentum=momentum), copy.deepcopy(model.state_dict())
        for gradient in gradients:
            model.load_state_dict(start)
            torch.manual_seed(gradient)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        return [parameter for name, parameter in model.named_parameters() if IN_A_LAYER.search(name)]

    matrices = [pair for pair in zip(step(1, 2), step(2), strict=True) if pair[0].dim() == 2]
    assert all(torch.equal(one, other) is forgets for one, other in matrices)


def test_every_vector_along_the_width_of_the_normalised_encoder_has_norm_one():
    model = NormalizedBert(20, 8, 16, 2, 32, 1)
    layer = model.layers[0]
    for matrix in (model.tokens.weight, layer.query.weight, layer.inner.weight, layer.output.weight.T):
        torch.testing.assert_close(matrix.norm(dim=1), torch.ones(matrix.shape[0]))


def test_a_study_picks_the_best_rate_and_passes_over_what_diverged(tmp_path, monkeypatch):
    monkeypatch.setattr("study.results", lambda scale: tmp_path / f"{scale}.jsonl")
    study = Study("cpu", [], workers=1, device="cpu")
    for rate, loss in zip(CONTESTANTS["bert-sgd"].rates, [6.5, 6.2, 6.3, None], strict=False):
        trial = study.trial("bert-sgd", rate)
        study.records[trial.key] = {"loss": loss}
    assert study.best_rate("bert-sgd") == CONTESTANTS["bert-sgd"].rates[1]
    assert study.neighbours("bert-sgd", CONTESTANTS["bert-sgd"].rates[0]) == CONTESTANTS["bert-sgd"].rates[:2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["tune", "--sources", "nowhere.txt"], "there is none at nowhere.txt"), (["tuned"], "no such phase: tuned")],
)
def test_a_study_refuses_before_it_starts_anything(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["study.py", *arguments])
    monkeypatch.setattr(Study, "run", lambda *_: pytest.fail("trials were started"))
    with pytest.raises(SystemExit) as failure:
        study_main()
    assert failure.value.code == 2
    assert message in capsys.readouterr().err


def test_the_long_budget_decides_between_recipes(tmp_path, monkeypatch):
    """What is best in short runs need not be in long ones: a variation counts if it is clearly better there."""
    monkeypatch.setattr("study.results", lambda scale: tmp_path / f"{scale}.jsonl")
    study = Study("cpu", [], workers=1, device="cpu")
    name, (low, high) = "sibert-matrix", CONTESTANTS["sibert-matrix"].rates[3:5]
    variation, long = RECIPES[name][1], {"tokens": study.scale.long}

    def keep(rate, loss, **fields):
        study.records[study.trial(name, rate, **fields).key] = {"loss": loss}

    keep(low, 5.2)
    keep(high, 5.1)
    keep(high, 4.9, options=variation)
    assert study.best_options(name) == variation
    assert study.long(name, high).options == {}  # before there is any long run
    keep(high, 3.7, **long)
    keep(low, 3.6, **long)
    keep(low, 3.59, options=variation, **long)
    assert study.final_options(name) == {}  # rounding makes as much
    assert study.final_rate(name) == low
    keep(high, 3.5, options=variation, **long)
    assert study.final_options(name) == variation
    assert study.final_rate(name) == high


def test_luck_with_one_seed_is_nobodys_final_result(tmp_path, monkeypatch):
    monkeypatch.setattr("study.results", lambda scale: tmp_path / f"{scale}.jsonl")
    study = Study("context", [], workers=1, device="cpu")
    name, (low, high) = "bert-modern-adamw", CONTESTANTS["bert-modern-adamw"].rates[3:5]

    def keep(losses, rate, **options):
        for seed, loss in enumerate(losses):
            study.records[study.trial(name, rate, seed=seed, options=options).key] = {"loss": loss}

    keep([3.6], high)
    keep([3.5, 3.4, 3.3], high, schedule="linear")
    keep([3.2, 3.5, 3.7], high, warmup_share=0.02)  # best with the first seed
    keep([3.1], low, weight_decay=0.01)
    final = finals(study)[name]
    assert (final.rate, final.options, final.mean) == (high, {"schedule": "linear"}, pytest.approx(3.4))
    assert study.best_options(name) == {"schedule": "linear"}  # nor what other batch sizes are run with
    keep([3.1, 3.2, 3.3], low, weight_decay=0.01)
    assert finals(study)[name].rate == low


def test_a_row_of_the_table_of_batch_sizes_has_one_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr("study.results", lambda scale: tmp_path / f"{scale}.jsonl")
    study = Study("cpu", [], workers=1, device="cpu")
    linear = {"options": {"schedule": "linear"}}

    def keep(name, loss, rate=None, **fields):
        study.records[study.trial(name, rate or CONTESTANTS[name].rates[3], **fields).key] = {"loss": loss}

    for name in (*OURS, *ADAMW):
        keep(name, 6.0)
    keep("sibert-matrix", 5.0, **linear)
    keep("sibert-matrix", 5.5, tokens_per_step=1024)

    def cells():
        (row,) = [line for line in batch_table(study).splitlines() if "SIBERT matrix" in line]
        return [cell.strip().partition(" ")[0] for cell in row.split("|")[2:-1]]

    assert cells() == ["as", "5.500", "6.000"]  # no column for a size that has not been measured
    keep("sibert-matrix", 5.4, tokens_per_step=1024, **linear)
    assert cells() == ["schedule", "5.400", "5.000"]
    keep("sibert-matrix", 5.1, seed=1, **linear)
    assert "| 5.050 (0.0016; 5.000 to 5.100) |" in batch_table(study)  # seeds are averaged at the best rate alone
    keep("sibert-matrix", 4.9, rate=0.0032, **linear)
    assert "| 5.050 (0.0016; 5.000 to 5.100) |" in batch_table(study)  # one seed at another rate may be luck
    keep("sibert-matrix", 5.0, rate=0.0032, seed=1, **linear)
    assert "| 4.950 (0.0032; 4.900 to 5.000) |" in batch_table(study)
    long = {"tokens_per_step": 16384, "tokens": study.scale.long}
    keep("sibert-matrix", 4.2, **long, **linear)
    assert "16384 tokens a step, 4 times the tokens" in batch_table(study)
    assert cells() == ["schedule", "5.400", "4.950", "4.200"]


def test_the_largest_batch_is_asked_at_the_long_budget_too(tmp_path, monkeypatch):
    """Until the best rate there has both neighbours; where the budgets are one, nothing is asked twice."""
    monkeypatch.setattr("study.results", lambda scale: tmp_path / f"{scale}.jsonl")
    study = Study("cpu", [], workers=1, device="cpu")
    name, rates = "sibert-matrix", CONTESTANTS["sibert-matrix"].rates
    for rate, loss in zip(rates[4:6], (5.9, 6.0), strict=True):
        study.records[study.trial(name, rate, tokens_per_step=16384).key] = {"loss": loss}
    study.records[study.trial(name, rates[0]).key] = {"loss": 6.0}

    asked = []

    def run(trials):
        for trial in trials:
            asked.append((trial.rate, trial.tokens, trial.tokens_per_step))
            study.records[trial.key] = {"loss": 4.0 + abs(rates.index(trial.rate) - 3)}  # rates[3] is best there

    monkeypatch.setattr(study, "run", run)
    study._until_inside(lambda: study.long_batch_trials(name))
    assert sorted(dict.fromkeys(asked)) == [(rate, study.scale.long, 16384) for rate in rates[2:6]]
    seeds = study.seeds_of_batch(name, 16384, study.scale.long, {})
    assert [trial.rate for trial in seeds] == [rates[3]] * 3 + [rates[2]] * 3  # the best, and its equal of two
    assert {trial.rate for trial in study.seeds_of_batch(name, 4096, study.scale.short, {})} == {rates[0]}
    assert study.batches == [(1024, 1 << 21), (4096, 1 << 21), (16384, 1 << 21), (16384, 1 << 23)]
    assert len(Study("context", [], workers=1, device="cpu").batches) == 3


def test_robustness_is_asked_at_the_best_rate_and_shown_once_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("study.results", lambda scale: tmp_path / f"{scale}.jsonl")
    study = Study("context", [], workers=1, device="cpu")
    adamw = "bert-modern-adamw"

    def keep(trial, loss):
        study.records[trial.key] = {"loss": loss}

    for name in (*OURS, adamw):
        keep(study.trial(name, CONTESTANTS[name].rates[5]), 4.0)
    keep(study.trial("sibert-matrix", CONTESTANTS["sibert-matrix"].rates[3]), 3.0)
    chosen = {name: CONTESTANTS[name].rates.index(trial.rate) for name, trial in study.robust().items()}
    assert chosen == {"sibert-joint": 5, "sibert-matrix": 3, "sibert-row": 5, adamw: 5}
    assert robustness_table(study) == ""

    def rows():
        lines = [line.split("|")[1:-1] for line in robustness_table(study).splitlines()]
        return {first.strip(): [cell.strip() for cell in cells] for first, *cells in lines}

    base = study.robust()["sibert-matrix"]
    *scales, last = [options for options in ROBUSTNESS if "init_scale" in options]
    for number, options in enumerate(scales):
        keep(replace(base, options=options), 3.0 - 0.01 * number)
    assert rows()["as it is (2 layers)"] == ["4.000", "3.000", "4.000", "4.000"]
    assert "**spread over init_scale**" not in rows()
    keep(replace(base, options=last), 3.01)
    assert rows()["**spread over init_scale**"] == ["", "**0.0300**", "", ""]
