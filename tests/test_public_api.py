"""What is public is listed, is the object it says, and optimizers and tensor functions need torch alone."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sibert

PUBLIC = {
    "sibert": {
        "ClippedSGD", "Hybrid", "Lamb", "SibertConfig", "SibertForMaskedLM", "SibertForMultipleChoice",
        "SibertForPreTraining", "SibertForQuestionAnswering", "SibertForSequenceClassification",
        "SibertForTokenClassification", "SibertModel", "build_optimizer", "param_groups",
    },
    "sibert.cli": {"main"},
    "sibert.data": {
        "Corpus", "CorpusReport", "EpochSampler", "LengthSampler", "MaskedDataset", "PreparedCorpus",
        "StreamingMaskedDataset",
        "collate", "collate_flat", "find_sources", "flatten", "load_corpus", "load_tokenizer", "prepare_corpus",
        "TokenFrequencies", "train_tokenizer", "unigram_entropy",
    },
    "sibert.evaluation": {
        "Answer", "Examples", "GENERIC", "METRICS", "Predictor", "SquadScores", "TASKS", "Task", "Tokenization",
        "Window", "answers_from_scores", "bag_of_words", "entities", "entity_scores", "examples_of", "held_out",
        "majority", "predict_file", "score", "span_labels", "squad_scores", "task_named", "task_rows", "windows",
    },
    "sibert.models": {
        "BertTwinForMaskedLM", "BertTwinForPreTraining", "INVARIANCES", "ModernBertTwinForMaskedLM", "SIZES",
        "SibertConfig", "SibertForMaskedLM",
        "SibertForMultipleChoice", "SibertForPreTraining", "SibertForPreTrainingOutput", "SibertForQuestionAnswering",
        "SibertForSequenceClassification", "SibertForTokenClassification", "SibertModel", "SibertPreTrainedModel",
        "initialize_from_frequencies", "modern_bert_config", "relu_normalized_attention", "size_of",
    },
    "sibert.ops": {
        "Choice", "affine_layer_norm", "choose_backend", "cosine_attention", "layer_norm", "relu_attention",
        "rotary_positions", "rotate", "unit_rows",
    },
    "sibert.conversion": {
        "Converted", "Direction", "build_optimizer", "converted_weights", "fold", "make_scale_invariant",
        "param_groups", "scale_invariant_groups",
    },
    "sibert.homogeneity": {
        "Blocker", "Check", "Confirmation", "Kind", "Place", "Slices", "Symmetry", "SymmetryReport", "Verdict",
        "analyze", "assert_scale_invariant", "invariant_rows",
    },
    "sibert.dynamics": {
        "Drift", "Equilibrium", "EquivalentExponentialLR", "Estimate", "ExponentialSchedule", "GradientNoise",
        "Hessian", "LightningRotation", "Minimiser", "Rotation", "RotationRecorder", "SVAG", "SVAGComparison",
        "adamw_equilibrium", "characteristic_root", "compare_svag", "equilibrium", "follow", "function_of",
        "gaussian_example_weights", "gradient_noise", "label_noise_velocity", "lion_equilibrium",
        "normalized_gd_velocity", "project", "sgd_equilibrium", "sphere_velocity", "sqrt_loss_velocity",
        "square_root_scaling", "stability_line", "svag_coefficients", "texp", "texp_plus_plus",
    },
    "sibert.optim": {
        "ClippedSGD", "GradientRelease", "GroupStatistics", "Hybrid", "InvariantGroup", "Lamb", "SCHEDULES",
        "ScaleInvariantModel", "Schedule", "build_optimizer", "default_intrinsic_lr", "param_groups", "schedule",
        "schedule_groups",
    },
    "sibert.lab": {
        "Diagnosis", "EXPERIMENTS", "Experiment", "Finding", "GroupDiagnosis", "Outcome", "REFERENCES", "Rates",
        "Scale", "Stability", "Standing", "Verdict", "bibtex", "diagnose", "diagnose_run", "load_outcome",
        "references_of_run", "run_experiment", "write_diagnosis", "write_page",
    },
    "sibert.reporting": {"Run", "Summary", "load_run", "render_page", "summarise", "write_report"},
    "sibert.training": {
        "Conversion", "DirectionsCallback", "FinetuneRecipe", "LossWindow", "MetricsFile", "PretrainRecipe",
        "PretrainTrainer", "ProgressCallback", "RotationCallback", "RunDirectory", "SignalCallback", "TaskTrainer",
        "build_model", "build_task_model", "build_task_optimizer", "build_training_optimizer", "convert_folder",
        "environment", "evaluate_run", "fill_masks", "latest_checkpoint", "load_converted", "next_run_directory",
        "optimizer_state_bytes", "peak_memory_bytes", "run_finetuning", "run_pretraining", "run_sweep",
    },
}  # fmt: skip

SOURCE = Path(sibert.__file__).parent

FORBIDDEN = ("transformers", "datasets", "accelerate", "tokenizers")

# The parent package registers the models with transformers; a stand-in shows what a part imports by itself.
LOAD_ALONE = """
import importlib, pkgutil, sys, types
sys.modules["sibert"] = parent = types.ModuleType("sibert")
parent.__path__ = [sys.argv[1]]
part = importlib.import_module(sys.argv[2])
for module in pkgutil.walk_packages(part.__path__, part.__name__ + "."):
    importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def packages_loaded_by(part: str) -> set[str]:
    """Names of the top-level packages in a new process that has imported all modules of a part and nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALONE, str(SOURCE), part], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_names_are_these(name):
    listed = importlib.import_module(name).__all__
    assert set(listed) == PUBLIC[name]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_exists(name):
    module = importlib.import_module(name)
    assert [one for one in module.__all__ if not hasattr(module, one)] == []


def test_every_subpackage_is_pinned():
    folders = {f"sibert.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")}
    assert folders | {"sibert"} == set(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC["sibert"]))
def test_a_top_level_name_is_the_object_of_its_subpackage(name):
    owners = [importlib.import_module(part) for part in ("sibert.models", "sibert.optim") if name in PUBLIC[part]]
    assert len(owners) == 1
    assert getattr(sibert, name) is getattr(owners[0], name)


@pytest.mark.parametrize("part", ["sibert.optim", "sibert.ops", "sibert.homogeneity", "sibert.conversion"])
def test_optimizers_and_tensor_functions_import_torch_alone(part):
    loaded = packages_loaded_by(part)
    assert "torch" in loaded
    assert loaded.isdisjoint(FORBIDDEN)


def test_the_models_do_import_transformers():
    assert "transformers" in packages_loaded_by("sibert.models")
