"""From a fine-tuned model to predictions in the words of the task, and their scores."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sibert.data import flatten
from sibert.evaluation.embeddings import embeddings_of, retrieval_accuracy
from sibert.evaluation.entities import entity_scores
from sibert.evaluation.examples import Examples
from sibert.evaluation.metrics import score
from sibert.evaluation.spans import answers_from_scores
from sibert.evaluation.squad_scores import SquadScores, squad_scores
from sibert.evaluation.tasks import Task, task_named
from sibert.evaluation.tokenization import CHUNK, Row, Tokenization
from sibert.models import SibertPreTrainedModel

__all__ = ["DivergedError", "Prediction", "Predictor", "whole_weights"]

Prediction = dict[str, Any]

DESCRIPTION = "task.json"
HEADS = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "qa": "AutoModelForQuestionAnswering",
    "embedding": "AutoModel",
}
"""Auto class of transformers by the kind of a task."""


@dataclass
class Predictor:
    """A model and how it answers for a task.

    Attributes:
        model: Of transformers, with the head of the task.
        tokenization: How it reads.
        task: Which.
        labels: In the order of the head's outputs; None where there are none.
        batch_size: Rows at once.
        no_answer_threshold: Of questions: evidence for no answer above it means none; None = always an answer.
        cut: Texts that were longer than the model reads, so far.
        flat: Whether SIBERT gets batches without padding; other models never do.
    """

    model: nn.Module
    tokenization: Tokenization
    task: Task
    labels: tuple[str, ...] | None
    batch_size: int = 64
    no_answer_threshold: float | None = None
    cut: int = 0
    flat: bool = True

    @classmethod
    def load(cls, folder: str | Path, *, batch_size: int = 64, device: str = "cpu") -> "Predictor":
        """Open a fine-tuned run.

        Args:
            folder: As written by `sibert finetune`.
            batch_size: Rows at once.
            device: Of torch.

        Raises:
            ValueError: If the folder is no such run.
        """
        folder = Path(folder)
        file = folder / DESCRIPTION
        if not file.is_file():
            unfinished = (folder / "finetune.json").is_file()
            raise ValueError(
                f"the fine-tuning run {folder} is not finished: sibert finetune --resume {folder}"
                if unfinished
                else f"{folder} is no fine-tuned run (it has no {DESCRIPTION}): sibert finetune makes one"
            )
        described = _description(file)
        task = task_named(described["task"]).renamed(tuple(described["columns"]), described["target"])
        with whole_weights(folder):
            model = getattr(transformers, HEADS[task.kind]).from_pretrained(folder).eval().to(device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        labels = None if described["labels"] is None else tuple(described["labels"])
        own = model.config.id2label
        if labels is not None and [own.get(i) for i in range(len(own))] != list(labels):
            raise ValueError(
                f"the head of {folder} has the labels {', '.join(map(str, own.values()))}, but {DESCRIPTION} says "
                f"{', '.join(labels)}: one of the files is of another run"
            )
        reading = Tokenization.of(model, tokenizer, described["length"], described["stride"])
        return cls(model, reading, task, labels, batch_size, described["no_answer_threshold"])

    def describe(self) -> dict[str, Any]:
        """What `load` needs beside the model and its tokenizer."""
        return {
            "task": self.task.name,
            "columns": list(self.task.columns),
            "target": self.task.target,
            "labels": None if self.labels is None else list(self.labels),
            "length": self.tokenization.length,
            "stride": self.tokenization.stride,
            "no_answer_threshold": self.no_answer_threshold,
        }

    def predict(self, columns: Mapping[str, Sequence[Any]]) -> list[Prediction]:
        """Predict for some examples at once.

        Args:
            columns: Of the examples, without labels.

        Returns:
            In their order: {"label", "score"}, {"value"}, {"tags"} (one for each word), {"embedding"} (of "anchor"), or
            {"answer", "start", "end", "score", "no_answer", "best"}: the text, its characters in the context, start
            plus end score, the evidence that there is none, and the best text all the same; "answer" is "" where the
            evidence exceeds the threshold.
        """
        if self.task.kind == "qa":
            return self._answers(columns)
        if self.task.kind == "token-classification":
            return self._tags(columns["words"])
        if self.task.kind == "embedding":
            return [{"embedding": vector.tolist()} for vector in self.embeddings(columns["anchor"])]
        rows, cut = self.tokenization.texts(columns)
        self.cut += cut
        logits_NL = np.stack([logits_L for (logits_L,) in self._outputs(rows, "logits")])
        if self.task.kind == "regression":
            return [{"value": float(value)} for value in logits_NL[:, 0]]
        assert self.labels is not None
        shifted_NL = np.exp(logits_NL - logits_NL.max(axis=1, keepdims=True))
        shares_NL = shifted_NL / shifted_NL.sum(axis=1, keepdims=True)
        return [{"label": self.labels[int(row.argmax())], "score": float(row.max())} for row in shares_NL]

    def evaluate(self, examples: Examples, split: str) -> dict[str, float]:
        """The scores of a split, by the task's metrics.

        Args:
            examples: With labels.
            split: Which.

        Returns:
            By name; "score" is the mean of the task's metrics, between 0 and 1 (correlations from -1).

        Raises:
            ValueError: If the split has no labels.
        """
        scores, _ = self.evaluate_and_predict(examples, split)
        return scores

    def evaluate_and_predict(self, examples: Examples, split: str) -> tuple[dict[str, float], list[Prediction]]:
        """The scores of a split, and the predictions that they are of.

        Args:
            examples: With labels.
            split: Which.

        Raises:
            ValueError: If the split has no labels.
        """
        data = examples.splits[split]
        if self.task.kind == "embedding":
            anchors, positives = (self.embeddings(data[name]) for name in ("anchor", "positive"))
            accuracy = retrieval_accuracy(anchors, positives, data["positive"])
            return {"retrieval_accuracy": accuracy, "score": accuracy}, []
        target = "answers" if self.task.kind == "qa" else "label"
        if target not in data.column_names:
            raise ValueError(f"the {split} split of {self.task.name} has no labels: predict it, or take another split")
        predictions = [
            prediction
            for begin in range(0, len(data), CHUNK)
            for prediction in self.predict(data[begin : begin + CHUNK])
        ]
        return self._scores(data, predictions), predictions

    def _scores(self, data: Any, predictions: list[Prediction]) -> dict[str, float]:
        if self.task.kind == "qa":
            found = self.question_scores(data, predictions)
            scores = {"exact_match": found.exact / 100, "f1": found.f1 / 100}
            if found.best_f1 is not None and found.of_unanswerable is not None:
                scores |= {"best_f1": found.best_f1 / 100, "best_f1_threshold": float(found.best_f1_threshold or 0.0)}
        elif self.task.kind == "token-classification":
            assert self.labels is not None
            expected = [[self.labels[i] for i in tags] for tags in data["label"]]
            scores = entity_scores([one["tags"] for one in predictions], expected)
        elif self.task.kind == "regression":
            scores = score(self.task.metrics, [one["value"] for one in predictions], list(data["label"]))
        else:
            assert self.labels is not None
            index = {label: i for i, label in enumerate(self.labels)}
            scores = score(self.task.metrics, [index[one["label"]] for one in predictions], list(data["label"]))
        return scores | {"score": float(np.mean([scores[name] for name in self.task.metrics]))}

    def question_scores(self, data: Any, predictions: list[Prediction]) -> SquadScores:
        """Scores of answers to questions, as SQuAD's.

        Args:
            data: Examples with "id" and "answers".
            predictions: As `predict` gives them.
        """
        answers = {key: one["text"] for key, one in zip(data["id"], data["answers"], strict=True)}
        pairs = list(zip(data["id"], predictions, strict=True))
        without = any(not texts for texts in answers.values())
        doubting = without or self.no_answer_threshold is not None
        return squad_scores(
            {key: one["best"] for key, one in pairs},
            answers,
            no_answer={key: one["no_answer"] for key, one in pairs} if doubting else None,
            threshold=self.no_answer_threshold,
            version="2.0" if without else "1.1",
        )

    def _answers(self, columns: Mapping[str, Sequence[Any]]) -> list[Prediction]:
        reading = self.tokenization
        found, cut = reading.questions(columns)
        self.cut += cut
        rows = [reading.window_row(window) for window in found]
        scores = list(self._outputs(rows, "start_logits", "end_logits"))
        answers, evidence = answers_from_scores(
            found, columns["context"], [start for start, _ in scores], [end for _, end in scores]
        )
        predictions: list[Prediction] = []
        for several, doubt in zip(answers, evidence, strict=True):
            none = not several or (self.no_answer_threshold is not None and doubt > self.no_answer_threshold)
            best = several[0] if several else None
            predictions.append(
                {
                    "answer": "" if none or best is None else best.text,
                    "start": -1 if none or best is None else best.start,
                    "end": -1 if none or best is None else best.end,
                    "score": best.score if best else None,
                    "no_answer": doubt,
                    "best": best.text if best else "",
                }
            )
        return predictions

    def _tags(self, several: Sequence[Sequence[str]]) -> list[Prediction]:
        assert self.labels is not None
        rows, owners, decides = self.tokenization.words(several)
        # A word that is nothing to the tokenizer is outside of everything.
        nothing = "O" if "O" in self.labels else self.labels[0]
        tags = [[nothing] * len(words) for words in several]
        for (logits_TL,), owner, places in zip(self._outputs(rows, "logits"), owners, decides, strict=True):
            for place, word in places:
                tags[owner][word] = self.labels[int(logits_TL[place].argmax())]
        return [{"tags": one} for one in tags]

    def embeddings(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1.

        Args:
            texts: N of them.

        Returns:
            [N, D].
        """
        rows, cut = self.tokenization.texts({"text": texts})
        self.cut += cut
        return np.stack([vector_D for (vector_D,) in self._outputs(rows, "last_hidden_state")])

    def _outputs(self, rows: Sequence[Row], *names: str) -> Iterator[tuple[np.ndarray, ...]]:
        """Outputs of the model for each row, without padding, in order; rows of like length share a batch."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        outputs: list[tuple[np.ndarray, ...] | None] = [None] * len(rows)
        training = self.model.training
        self.model.eval()
        for begin in range(0, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            for i, arrays in zip(chosen, self._batch([rows[i] for i in chosen], names), strict=True):
                if not all(np.isfinite(array).all() for array in arrays):
                    raise DivergedError(
                        "the outputs of the model are not finite: its weights are damaged or its training diverged; "
                        "fine-tune again, with a lower learning rate"
                    )
                outputs[i] = arrays
        self.model.train(training)
        for found in outputs:
            assert found is not None
            yield found

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Row], names: Sequence[str]) -> list[tuple[np.ndarray, ...]]:
        flat = self.flat and isinstance(self.model, SibertPreTrainedModel)
        batch = flatten(rows) if flat else dict(self.tokenization.tokenizer.pad(list(rows), return_tensors="pt"))
        device = next(self.model.parameters()).device
        batch = {name: one.to(device) if isinstance(one, Tensor) else one for name, one in batch.items()}
        result = self.model(**batch)
        several = [result[name].float() for name in names]
        if self.task.kind == "embedding":
            several = [embeddings_of(hidden, batch) for hidden in several]
        several = [tensor.cpu() for tensor in several]
        if self.task.kind not in ("qa", "token-classification"):
            return [tuple(tensor[i].numpy() for tensor in several) for i in range(len(rows))]
        return list(zip(*(_by_row(tensor, rows, batch) for tensor in several), strict=True))


class DivergedError(ValueError):
    """A model's outputs are infinite or no numbers."""


def _description(file: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no valid JSON ({error}): fine-tune again") from error
    fields = ("task", "columns", "target", "labels", "length", "stride", "no_answer_threshold")
    lacking = [name for name in fields if not isinstance(described, dict) or name not in described]
    if lacking:
        raise ValueError(f"{file} lacks {', '.join(lacking)}: it is not as sibert finetune writes it")
    return described


@contextmanager
def whole_weights(source: str | Path) -> Iterator[None]:
    """Say in one sentence which file of weights is damaged.

    Args:
        source: Folder that weights are read from, or a name of the hub.

    Raises:
        ValueError: If a file is, for instance cut off.
    """
    try:
        yield
    except SafetensorError as error:
        files = [file for file in sorted(Path(source).glob("*.safetensors")) if not _opens(file)]
        raise ValueError(
            f"{files[0] if files else source} is damaged ({error}): copy or save the model again"
        ) from error


def _opens(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except SafetensorError:
        return False


def _by_row(scores: Tensor, rows: Sequence[Row], batch: Mapping[str, Any]) -> list[np.ndarray]:
    """Scores of the tokens of each row, without padding, which may be on either side; the tokenizer says where."""
    lengths = [len(row["input_ids"]) for row in rows]
    if "attention_mask" in batch:
        masks = batch["attention_mask"].bool().cpu()
        return [one[mask].numpy() for one, mask in zip(scores, masks, strict=True)]
    if len(scores) == 1 and scores.shape[1] == sum(lengths):
        return [one.numpy() for one in torch.split(scores[0], lengths)]
    return [one[:length].numpy() for one, length in zip(scores, lengths, strict=True)]
