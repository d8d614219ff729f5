"""F1 of entities in tagged words, by the definition of the CoNLL shared tasks.

Tjong Kim Sang and De Meulder, arXiv cs/0306050: an entity counts when its words and its type are all right.
"""

from collections.abc import Sequence

__all__ = ["Entity", "entities", "entity_scores"]

Entity = tuple[int, int, str]
"""First word, behind the last one, type."""

_ENDS = ("E", "L", "S", "U")


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of a sentence.

    Args:
        tags: One for each word: "O", or a type behind "B-", "I-" (IOB1 and IOB2) or also "E-", "L-", "S-", "U-" (IOBES,
            BILOU). An "I-" behind another type begins an entity. A tag without such a mark is an entity of its word
            alone, so that for parts of speech F1 is the share of words that are right.

    Returns:
        Their places and types.
    """
    found: set[Entity] = set()
    begin, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, dash, name = tag.partition("-")
        marked = bool(dash) and mark in ("B", "I", "E", "L", "S", "U")
        inside = marked and mark in ("I", "E", "L") and name == kind
        if kind and not inside:
            found.add((begin, place, kind))
            kind = ""
        if tag == "O" or (marked and inside and mark == "I"):
            continue
        if not marked:
            found.add((place, place + 1, tag))
            continue
        if not inside:
            begin, kind = place, name
        if mark in _ENDS:
            found.add((begin, place + 1, kind))
            kind = ""
    return found


def entity_scores(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of all entities of a set of sentences, and the share of words with the right tag.

    Args:
        predicted: Tags by sentence.
        expected: Likewise.

    Raises:
        ValueError: If the sentences have not the same words.
    """
    if [len(tags) for tags in predicted] != [len(tags) for tags in expected]:
        raise ValueError("expected a predicted tag for every word of every sentence")
    words = sum(len(tags) for tags in expected)
    if not words:
        raise ValueError("there is nothing to score: the split has no words")
    pairs = list(zip(map(entities, predicted), map(entities, expected), strict=True))
    right = sum(len(found & wanted) for found, wanted in pairs)
    found, wanted = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    same = sum(p == e for a, b in zip(predicted, expected, strict=True) for p, e in zip(a, b, strict=True))
    return {
        "entity_f1": 2 * right / (found + wanted) if found + wanted else 1.0,
        "entity_precision": right / found if found else float(not wanted),
        "entity_recall": right / wanted if wanted else float(not found),
        "word_accuracy": same / words,
    }
