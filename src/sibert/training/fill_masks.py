"""What a trained model would put in place of [MASK]."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from sibert.data import load_tokenizer
from sibert.evaluation.predictor import whole_weights

__all__ = ["fill_masks"]


def fill_masks(folder: Path, text: str, top: int = 5) -> Iterator[tuple[list[tuple[str, float]], int]]:
    """Predict the masked tokens of a text.

    Args:
        folder: Folder with a masked-LM model and its tokenizer: a finished run.
        text: Text with one or more mask tokens.
        top: Number of predictions.

    Yields:
        For each mask, its predictions (token, probability) from the likeliest down, and its position.

    Raises:
        ValueError: If the folder has no whole masked-LM model, or the text no mask, or too many tokens.
    """
    if not (folder / "config.json").exists():
        unfinished = (folder / "recipe.json").exists()
        hint = (
            f"the run is not finished; go on with: sibert pretrain --resume {folder}"
            if unfinished
            else "give a finished run"
        )
        raise ValueError(f"{folder} has no model: {hint}")
    tokenizer = load_tokenizer(str(folder))
    with whole_weights(folder):
        model, loaded = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(
            f"{folder} has no weights for {', '.join(missing[:3])}, so its predictions would be random: give a model "
            "that was pre-trained by masking, not one that was fine-tuned for a task"
        )
    inputs = tokenizer(text, return_tensors="pt", verbose=False)
    ids = inputs["input_ids"][0]
    positions = (ids == tokenizer.mask_token_id).nonzero().flatten().tolist()
    if not positions:
        raise ValueError(f"the text has no {tokenizer.mask_token}; write it where the model is to predict")
    # RoBERTa's tokenizer alone knows that two of its positions are for padding.
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or math.inf)
    if len(ids) > longest:
        raise ValueError(f"the text has {len(ids)} tokens, but the model in {folder} reads {longest}: shorten the text")
    with torch.no_grad():
        probabilities_TV = model(**inputs).logits[0].float().softmax(dim=-1)
    for position in positions:
        best = probabilities_TV[position].topk(min(top, probabilities_TV.shape[-1]))
        tokens = tokenizer.convert_ids_to_tokens(best.indices.tolist())
        yield list(zip(tokens, best.values.tolist(), strict=True)), position
