"""The text of a recipe of pre-training, for the run itself and for whoever looks at it later."""

from sibert.data import PreparedCorpus, prepare_corpus
from sibert.training.recipe import PretrainRecipe

__all__ = ["pretraining_corpus"]


def pretraining_corpus(recipe: PretrainRecipe, tokenizer: str | None) -> PreparedCorpus:
    """Read, tokenise and pack what a recipe names.

    Args:
        recipe: Which text, and how.
        tokenizer: Folder or hub name: that of the run, where it has one already; None trains one.
    """
    return prepare_corpus(
        recipe.data or None,
        tokenizer=tokenizer,
        vocab_size=recipe.vocab_size,
        lowercase=recipe.lowercase,
        seq_length=recipe.seq_length,
        next_sentence=recipe.next_sentence,
        streaming=recipe.streaming,
        validation_fraction=recipe.validation_fraction,
        documents=recipe.documents,
        text_column=recipe.text_column,
    )
