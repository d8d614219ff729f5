"""From the columns of examples to what a model reads: token ids, windows, labels at tokens.

Shapes: T tokens of a row. A row is a text, or a window of one that is longer than the model.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, concatenate_datasets

from sibert.evaluation.examples import Examples
from sibert.evaluation.spans import Window, shortened, span_labels, windows

__all__ = ["Row", "Tokenization", "WordPlaces"]

IGNORED = -100
CHUNK = 1000
"""Examples that are tokenised at once: offsets of a whole SQuAD would take gigabytes."""

Row = dict[str, Any]
WordPlaces = list[tuple[int, int]]
"""(position in the row, index of the word), of the words that a row decides about."""


@dataclass(frozen=True)
class Tokenization:
    """How a model reads texts.

    Attributes:
        tokenizer: A fast one of transformers.
        length: Most tokens of a row, special tokens included.
        stride: Tokens that two windows of a long text share.
        segments: Whether the model tells the two texts of a pair apart by token_type_ids.
    """

    tokenizer: Any
    length: int
    stride: int
    segments: bool

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, length: int | None = None, stride: int | None = None, *, usual: int = 128
    ) -> "Tokenization":
        """What suits a model.

        Args:
            model: Of transformers.
            tokenizer: Its own.
            length: Most tokens of a row; None = the usual one or what the model can read.
            stride: None = a quarter of the length.
            usual: Length where none is given and the model can read as many.

        Raises:
            ValueError: If the tokenizer is none for this model, or the model cannot read rows of this length.
        """
        config = model.config
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} gives no offsets: a fast tokenizer (tokenizer.json) is needed"
            )
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, but the model knows {config.vocab_size}: they do not "
                "belong together"
            )
        # RoBERTa's positions begin behind that of padding.
        offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        largest = getattr(config, "max_position_embeddings", None) or 512
        largest -= offset
        chosen = min(usual, largest) if length is None else length
        if not 8 <= chosen <= largest:
            raise ValueError(f"the model reads rows of 8 to {largest} tokens, got a length of {chosen}")
        own = chosen // 4 if stride is None else stride
        if not 0 <= own < chosen - tokenizer.num_special_tokens_to_add(pair=True):
            raise ValueError(f"stride must be less than the length of {chosen} tokens, got {own}")
        takes = "token_type_ids" in inspect.signature(model.forward).parameters
        return cls(tokenizer, chosen, own, takes and getattr(config, "type_vocab_size", 2) > 1)

    def texts(self, columns: Mapping[str, Sequence[str]]) -> tuple[list[Row], int]:
        """Texts, or pairs of them.

        Args:
            columns: "text" and perhaps "text_pair".

        Returns:
            A row for each, and how many were cut because they are too long.
        """
        several = [list(columns[name]) for name in ("text", "text_pair") if name in columns]
        rows = self._rows(self.tokenizer(*several, verbose=False))
        long = [i for i, row in enumerate(rows) if len(row["input_ids"]) > self.length]
        if long:
            parts = [[texts[i] for i in long] for texts in several]
            cut = self.tokenizer(*parts, truncation="longest_first", max_length=self.length)
            for i, row in zip(long, self._rows(cut), strict=True):
                rows[i] = row
        return rows, len(long)

    def words(self, several: Sequence[Sequence[str]]) -> tuple[list[Row], list[int], list[WordPlaces]]:
        """Words of sentences, long ones in windows.

        Args:
            several: The words of each sentence.

        Returns:
            Rows, the sentence of each, and which words it decides about: a word that is in two windows belongs to the
            one that shows more on both sides of it. A word that is nothing to the tokenizer belongs to none.
        """
        encoded = self.tokenizer(
            [list(words) for words in several],
            is_split_into_words=True,
            truncation=True,
            max_length=self.length,
            stride=min(self.stride, self.length - self.tokenizer.num_special_tokens_to_add() - 1),
            return_overflowing_tokens=True,
        )
        owners = list(encoded["overflow_to_sample_mapping"])
        best: dict[tuple[int, int], tuple[int, int, int]] = {}
        for row, owner in enumerate(owners):
            ids = encoded.word_ids(row)
            inside = [place for place, word in enumerate(ids) if word is not None]
            earlier: set[int] = set()
            for place in inside:
                word = ids[place]
                if word in earlier:
                    continue
                earlier.add(word)
                shown = min(place - inside[0], inside[-1] - place)
                if (owner, word) not in best or shown > best[owner, word][0]:
                    best[owner, word] = (shown, row, place)
        decides: list[WordPlaces] = [[] for _ in owners]
        for (_, word), (_, row, place) in sorted(best.items()):
            decides[row].append((place, word))
        return self._rows(encoded), owners, decides

    def _rows(self, encoded: Any) -> list[Row]:
        names = ["input_ids", *(["token_type_ids"] if self.segments and "token_type_ids" in encoded else [])]
        return [
            dict(zip(names, values, strict=True)) for values in zip(*(encoded[name] for name in names), strict=True)
        ]

    def training(self, examples: Examples, split: str = "train") -> tuple[Dataset, list[str]]:
        """What a model of transformers is trained on.

        Args:
            examples: With labels.
            split: Which.

        Returns:
            Rows with labels (for embeddings, the ids of both texts, "anchor" and "positive"), and what a user should
            know, in sentences.
        """
        data = examples.splits[split]
        kind, cut, parts = examples.task.kind, 0, []
        for begin in range(0, len(data), CHUNK):
            columns = data[begin : begin + CHUNK]
            if kind == "qa":
                rows, more = self._labelled_windows(columns)
                cut += more
            elif kind == "token-classification":
                rows = self._labelled_words(columns)
            elif kind == "embedding":
                rows, more = self._pairs(columns)
                cut += more
            else:
                rows, more = self.texts(columns)
                cut += more
                for row, label in zip(rows, columns["label"], strict=True):
                    row["labels"] = label
            parts.append(Dataset.from_list(rows))
        return concatenate_datasets(parts), self.notes(split, len(data), cut)

    def notes(self, split: str, number: int, cut: int) -> list[str]:
        """Say how many texts were cut.

        Args:
            split: Whose texts.
            number: Of them.
            cut: How many were too long.
        """
        if not cut:
            return []
        return [f"{cut} of {number} texts of {split} are longer than {self.length} tokens and were cut (--length)"]

    def questions(self, columns: Mapping[str, Sequence[str]]) -> tuple[list[Window], int]:
        """Questions with their contexts, long ones in windows.

        Args:
            columns: "question" and "context".

        Returns:
            See `sibert.evaluation.windows`, and how many questions were cut: those longer than half a window.
        """
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        most = max(1, min(self.length // 2, self.length - special - self.stride - 1))
        asked, cut = shortened(self.tokenizer, columns["question"], most)
        return windows(self.tokenizer, asked, columns["context"], length=self.length, stride=self.stride), cut

    def _labelled_windows(self, columns: Mapping[str, Any]) -> tuple[list[Row], int]:
        found, cut = self.questions(columns)
        rows = []
        for window in found:
            answers = columns["answers"][window.question]
            start = answers["answer_start"][0] if answers["text"] else 0
            end = start + len(answers["text"][0]) if answers["text"] else 0
            first, last = span_labels(window, start, end)
            rows.append(self.window_row(window) | {"start_positions": first, "end_positions": last})
        return rows, cut

    def window_row(self, window: Any) -> Row:
        """The row of a window.

        Args:
            window: One of `sibert.evaluation.windows`.
        """
        row = {"input_ids": window.input_ids}
        if self.segments and window.token_type_ids is not None:
            row["token_type_ids"] = window.token_type_ids
        return row

    def _pairs(self, columns: Mapping[str, Any]) -> tuple[list[Row], int]:
        (anchors, cut), (positives, more) = (self.texts({"text": columns[name]}) for name in ("anchor", "positive"))
        pairs = zip(anchors, positives, strict=True)
        return [{"anchor": one["input_ids"], "positive": other["input_ids"]} for one, other in pairs], cut + more

    def _labelled_words(self, columns: Mapping[str, Any]) -> list[Row]:
        rows, owners, decides = self.words(columns["words"])
        for row, owner, places in zip(rows, owners, decides, strict=True):
            row["labels"] = [IGNORED] * len(row["input_ids"])
            for place, word in places:
                row["labels"][place] = columns["label"][owner][word]
        return rows
