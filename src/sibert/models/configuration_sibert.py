"""Configuration of SIBERT and its named sizes."""

from typing import Any, Final, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

__all__ = ["INVARIANCES", "SIZES", "SibertConfig", "size_of"]

Invariance = Literal["joint", "matrix", "row"]
INVARIANCES: Final[tuple[str, ...]] = get_args(Invariance)
"""What may be rescaled without changing the output: the encoder as a whole, every matrix, or every row of it."""

SIZES: dict[str, dict[str, int]] = {
    "nano": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512},
    "mini": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "small": {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    "medium": {"num_hidden_layers": 8, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
}
"""Layers, width, heads and feed-forward width of each named size.

"base" and "large" are BERT's (arXiv 1810.04805, section 3); "tiny" to "medium" those of the BERT miniatures (arXiv
1908.08962); "nano" is for tests.
"""


def size_of(name: str) -> dict[str, int]:
    """Look up a named size.

    Args:
        name: A key of `SIZES`.

    Returns:
        The keyword arguments of `SibertConfig` (and of `transformers.BertConfig`) that make this size.

    Raises:
        ValueError: If there is no such size.
    """
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; choose one of {', '.join(SIZES)}")
    return dict(SIZES[name])


@strict
class SibertConfig(PreTrainedConfig):  # type: ignore[misc]
    r"""Sizes of a SIBERT model. The defaults are BERT-base's.

    What BERT lets one choose and scale invariance fixes is not here: the activation is ReLU, the attention normalised
    ReLU ("joint") or the softmax of cosines, and normalisations have no epsilon.

    Attributes:
        invariance: What may be rescaled on its own without changing the output (`modeling_sibert` has the forms).
            "joint": the encoder as a whole; the model of the paper. "matrix": every matrix of the encoder and of the
            masked-LM head, and every token. "row": every row of every matrix, that is, every neuron and every token.
        vocab_size: Number of tokens V.
        hidden_size: Width D of the residual stream; a multiple of `num_attention_heads`.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of heads H; the head width is D / H.
        intermediate_size: Width of the feed-forward layer.
        hidden_dropout_prob: Dropout of the embeddings and of each branch of a layer.
        attention_probs_dropout_prob: Dropout of the normalised attention weights.
        max_position_embeddings: Longest sequence.
        rope_theta: Base of the rotary positions; not used by "joint", which has a table of positions.
        type_vocab_size: Number of segment types; 0 = no segment embeddings. Where all tokens are of one type, its
            embedding is a vector that all positions share. With the gradient of all of them it outgrows the others in
            the first steps of SGD, and hides what distinguishes the tokens (LOGBOOK, 2026-11-22).
        initializer_range: Standard deviation of the truncated normal initialisation of all matrices.
        pad_token_id: Padding token.
        classifier_dropout: Dropout before a task head; None = `hidden_dropout_prob`.
        classifier_pooling: What a classifier of sequences sees: "mean", the mean of all tokens, or "cls", the first
            one, as BERT, which trains it by the next-sentence task. Nothing teaches the first token to stand for the
            sequence where only tokens are predicted.
        tie_word_embeddings: One table for the embeddings and the decoder; None = unless "joint", which cannot have it.

    Raises:
        StrictDataclassFieldValidationError, StrictDataclassClassValidationError: On a wrong type or relation.

    References:
        arXiv 2202.00980, section 3.
    """

    model_type = "sibert"

    invariance: str = "matrix"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    rope_theta: float | int = 10_000.0
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    classifier_dropout: float | int | None = None
    classifier_pooling: str = "mean"
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from the invariance."""
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.invariance != "joint"
        super().__post_init__(**kwargs)

    def validate_widths(self) -> None:
        """Check the relations between the fields."""
        for name, least in (
            ("vocab_size", 1),
            ("hidden_size", 1),
            ("num_hidden_layers", 0),
            ("num_attention_heads", 1),
            ("intermediate_size", 1),
            ("max_position_embeddings", 1),
            ("type_vocab_size", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )
        if self.invariance != "joint" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                "the width of a head, hidden_size / num_attention_heads, must be even, for positions turn pairs of "
                f"features; got {self.hidden_size} / {self.num_attention_heads}"
            )
        for name in ("rope_theta", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def validate_classifier_pooling(self) -> None:
        """Check its name."""
        if self.classifier_pooling not in ("cls", "mean"):
            raise ValueError(f"classifier_pooling must be 'cls' or 'mean', got {self.classifier_pooling!r}")

    def validate_invariance(self) -> None:
        """Check the invariance, and that the decoder is tied where that keeps it."""
        if self.invariance not in INVARIANCES:
            raise ValueError(f"invariance must be one of {', '.join(INVARIANCES)}, got {self.invariance!r}")
        if self.invariance == "joint" and self.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings must be False with invariance 'joint': a decoder tied to the embeddings makes the "
                "loss depend on the encoder's scale, and none of the scale-invariance results hold any more"
            )

    @classmethod
    def of_size(cls, name: str, **kwargs: Any) -> "SibertConfig":
        """Make the configuration of a named size.

        Args:
            name: A key of `SIZES`.
            **kwargs: Further fields, for instance `vocab_size`.

        Returns:
            The configuration.
        """
        return cls(**{**size_of(name), **kwargs})
