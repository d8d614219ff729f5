"""Training on `transformers.Trainer`: recipes, run directories, exact resume."""

from sibert.training.callbacks import ProgressCallback, RotationCallback, SignalCallback
from sibert.training.checkpoints import latest_checkpoint
from sibert.training.converted import Conversion, DirectionsCallback, convert_folder, load_converted
from sibert.training.environment import environment
from sibert.training.evaluate import evaluate_run
from sibert.training.fill_masks import fill_masks
from sibert.training.finetune import TaskTrainer, run_finetuning
from sibert.training.finetune_recipe import FinetuneRecipe
from sibert.training.metrics import LossWindow, MetricsFile, optimizer_state_bytes, peak_memory_bytes
from sibert.training.pretrain import build_model, build_training_optimizer, run_pretraining
from sibert.training.recipe import PretrainRecipe
from sibert.training.run_directory import RunDirectory, next_run_directory
from sibert.training.sweep import run_sweep
from sibert.training.task_model import build_task_model, build_task_optimizer
from sibert.training.trainer import PretrainTrainer

__all__ = [  # noqa: RUF022  (grouped by what they do)
    # recipes and runs
    "FinetuneRecipe",
    "PretrainRecipe",
    "RunDirectory",
    "build_model",
    "build_task_model",
    "build_task_optimizer",
    "build_training_optimizer",
    "environment",
    "latest_checkpoint",
    "next_run_directory",
    "run_finetuning",
    "run_pretraining",
    "run_sweep",
    # the trainer and its parts
    "LossWindow",
    "MetricsFile",
    "PretrainTrainer",
    "ProgressCallback",
    "RotationCallback",
    "SignalCallback",
    "TaskTrainer",
    "optimizer_state_bytes",
    "peak_memory_bytes",
    # use
    "Conversion",
    "DirectionsCallback",
    "convert_folder",
    "evaluate_run",
    "fill_masks",
    "load_converted",
]
