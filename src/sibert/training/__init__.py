"""Training on `transformers.Trainer`: recipes, run directories, exact resume."""

from sibert.training.callbacks import ProgressCallback, SignalCallback
from sibert.training.checkpoints import latest_checkpoint
from sibert.training.converted import Conversion, DirectionsCallback, convert_folder, load_converted
from sibert.training.environment import environment
from sibert.training.fill_masks import fill_masks
from sibert.training.metrics import LossWindow, MetricsFile, optimizer_state_bytes, peak_memory_bytes
from sibert.training.pretrain import build_model, build_training_optimizer, run_pretraining
from sibert.training.recipe import PretrainRecipe
from sibert.training.run_directory import RunDirectory, next_run_directory
from sibert.training.trainer import PretrainTrainer

__all__ = [  # noqa: RUF022  (grouped by what they do)
    # recipes and runs
    "PretrainRecipe",
    "RunDirectory",
    "build_model",
    "build_training_optimizer",
    "environment",
    "latest_checkpoint",
    "next_run_directory",
    "run_pretraining",
    # the trainer and its parts
    "LossWindow",
    "MetricsFile",
    "PretrainTrainer",
    "ProgressCallback",
    "SignalCallback",
    "optimizer_state_bytes",
    "peak_memory_bytes",
    # use
    "Conversion",
    "DirectionsCallback",
    "convert_folder",
    "fill_masks",
    "load_converted",
]
