"""`transformers.Trainer` for runs that may be stopped, or killed, at any moment and then go on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sibert.training.checkpoints import discard_oldest, mark_complete

__all__ = ["ResumableTrainer"]


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` that always has a whole checkpoint on disk, once it has written one.

    Differences from `transformers.Trainer`:

    - A checkpoint is marked as complete after its last file, and older ones are removed only then.
    - A run that is resumed from its last step is over: `Trainer` would look at `max_steps` after one step more.

    Args:
        **kwargs: As for `transformers.Trainer`.
    """

    control: TrainerControl

    def complete(self, checkpoint: Path) -> None:
        """Write what else belongs into a checkpoint, in the one process that writes; here nothing.

        Args:
            checkpoint: The folder.
        """

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Collect the micro-batches of a step; none where there is no step left."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.complete(checkpoint)
            mark_complete(checkpoint)
            if limit:
                best = self.state.best_model_checkpoint
                discard_oldest(checkpoint.parent, limit, spared=None if best is None else Path(best))
        self.accelerator.wait_for_everyone()
