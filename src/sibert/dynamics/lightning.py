"""The rotation recorder as a callback of Lightning, which is not imported: any trainer with its hooks will do."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sibert.dynamics.rotation import Rotation, RotationRecorder, marked_groups
from sibert.optim import InvariantGroup, ScaleInvariantModel

__all__ = ["LightningRotation"]


class LightningRotation:
    """Records rotations while a Lightning trainer trains: `Trainer(callbacks=[LightningRotation(every=50)])`.

    Every hook that Lightning knows is there; those that are not needed do nothing.

    Args:
        groups: As of `RotationRecorder`; None = those of the module's `scale_invariant_groups()`, or else those that
            its optimizers mark.
        every: Steps from one measurement to the next.

    Attributes:
        recorders: One for each optimizer that steps a group.
    """

    state_key = "sibert.LightningRotation"
    _legacy_state_key = state_key  # asked for when a run goes on from a checkpoint

    def __init__(
        self,
        groups: Mapping[str, InvariantGroup | Sequence[nn.Parameter]] | None = None,
        every: int = 50,
    ) -> None:
        self.groups, self.every = groups, every
        self.recorders: list[RotationRecorder] = []

    @property
    def records(self) -> list[Rotation]:
        """All measurements so far."""
        return [record for recorder in self.recorders for record in recorder.records]

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin, when the optimizers are there.

        Args:
            trainer: With `optimizers`.
            pl_module: The module.
        """
        groups = self.groups
        if groups is None and isinstance(pl_module, ScaleInvariantModel):
            groups = pl_module.scale_invariant_groups()
        for wrapped in trainer.optimizers:
            optimizer = getattr(wrapped, "optimizer", wrapped)
            own = {p for group in optimizer.param_groups for p in group["params"]}
            marked = marked_groups(optimizer) if groups is None else groups
            mine = {name: group for name, group in marked.items() if own & set(_parameters(group))}
            if mine:
                self.recorders.append(RotationRecorder(optimizer, mine, self.every))
        if not self.recorders:
            raise ValueError(
                "no optimizer of the trainer steps a scale-invariant group: give groups={name: [parameters]}; `sibert "
                "check` finds those of a model"
            )

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Stop; the records stay.

        Args:
            trainer: Not used.
            pl_module: Not used.
        """
        for recorder in self.recorders:
            recorder.close()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Stop where training does, too.

        Args:
            trainer: Not used.
            pl_module: Not used.
            exception: Not used.
        """
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Nothing of this belongs into a checkpoint."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load.

        Args:
            state_dict: Not used.
        """

    def __getattr__(self, name: str) -> Any:
        """The hooks that are not needed."""
        if name in ("setup", "teardown") or name.startswith("on_"):
            return _nothing
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _parameters(group: InvariantGroup | Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [p for _, p in group.members] if isinstance(group, InvariantGroup) else list(group)
