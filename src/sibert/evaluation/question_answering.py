"""`pipeline("question-answering")`, which transformers 5 no longer brings along, as it was: same call, same result.

Importing `sibert` registers it where transformers has none. Where it has one, that is used.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers.modeling_outputs import ModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES
from transformers.pipelines.base import ChunkPipeline

from sibert.evaluation.spans import Answer, Window, answers_from_scores
from sibert.evaluation.tokenization import Tokenization

__all__ = ["QuestionAnsweringPipeline"]

LENGTH = 384
"""Tokens of a window where the caller names none and the model can read as many: BERT's on SQuAD."""


class QuestionAnsweringPipeline(ChunkPipeline):  # type: ignore[misc]
    """Answers questions by a part of their context, however long it is.

    Called with `question` and `context`, both texts or both lists, or with a dictionary of the two, or a list of them.
    Options of the call: `top_k` (answers to each, 1), `doc_stride` (tokens that windows share, a quarter of them),
    `max_answer_len` (tokens, 30), `max_seq_len` (tokens of a window, at most 384 or what the model reads) and
    `handle_impossible_answer` (False: "" is no answer).

    Returns a dictionary for each question, or a list with `top_k` above 1 or a list of questions: "answer", "start" and
    "end" (characters of the context as given), and "score", the probability of its first token times that of its last
    one in the window where that is largest.

    Raises:
        ValueError: If question and context are missing, not texts, empty, or not as many.

    Source: arXiv 1810.04805, section 4.2.
    """

    default_input_names = "question,context"
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.check_model_type(dict(MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES) | _registered())

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Answer (see the class)."""
        one, examples = _examples(inputs, options)
        answers = super().__call__(examples, **options)
        return answers[0] if one else answers

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        doc_stride: int | None = None,
        max_answer_len: int | None = None,
        max_seq_len: int | None = None,
        handle_impossible_answer: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        reading = {"length": max_seq_len, "stride": doc_stride}
        answering = {"top_k": top_k, "longest": max_answer_len, "none": handle_impossible_answer}
        return _given(reading), {}, _given(answering)

    def preprocess(
        self, example: dict[str, str], length: int | None = None, stride: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Windows of the context, each with the question."""
        usual = min(LENGTH, self.tokenizer.model_max_length)
        reading = Tokenization.of(self.model, self.tokenizer, length, stride, usual=usual)
        found, _ = reading.questions({name: [example[name]] for name in ("question", "context")})
        for i, window in enumerate(found):
            encoded = self.tokenizer.pad([reading.window_row(window)], return_tensors="pt")
            yield {
                **encoded,
                "window": window,
                "context": example["context"],
                "is_last": i == len(found) - 1,
            }

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        kept = {name: inputs.pop(name) for name in ("window", "context", "is_last")}
        outputs: ModelOutput = self.model(**inputs)
        return {
            **kept,
            "start": outputs["start_logits"],
            "end": outputs["end_logits"],
            "attention_mask": inputs["attention_mask"],
        }

    def postprocess(
        self, several: Sequence[dict[str, Any]], top_k: int = 1, longest: int = 30, none: bool = False
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """The best answers of all windows."""
        found: list[Window] = [one["window"] for one in several]
        starts, ends = ([_log_shares(one, name) for one in several] for name in ("start", "end"))
        ((answers,), (doubt,)) = answers_from_scores(
            found, [several[0]["context"]], starts, ends, best=max(20, top_k), longest=longest
        )
        if none and answers:
            answers = [*answers, Answer("", 0, 0, doubt + answers[0].score)]
        elif none or not answers:
            answers = [Answer("", 0, 0, 0.0)]
        best = sorted(answers, key=lambda answer: -answer.score)[:top_k]
        given = [{"score": math.exp(one.score), "start": one.start, "end": one.end, "answer": one.text} for one in best]
        return given[0] if top_k == 1 else given


def _registered() -> dict[str, str]:
    """Models that libraries have added to the Auto class, ours among them."""
    from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING

    added = MODEL_FOR_QUESTION_ANSWERING_MAPPING._extra_content.values()
    return {model.__name__: model.__name__ for model in added}


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _examples(inputs: Sequence[Any], options: dict[str, Any]) -> tuple[bool, list[Mapping[str, str]]]:
    """Whether it is one question, and all of them."""
    if inputs:
        given = inputs[0] if len(inputs) == 1 else list(inputs)
        one = isinstance(given, Mapping)
        several: list[Mapping[str, str]] = [given] if isinstance(given, Mapping) else list(given)
    elif "question" in options and "context" in options:
        question, context = options.pop("question"), options.pop("context")
        one = isinstance(question, str)
        questions = [question] if isinstance(question, str) else list(question)
        contexts = [context] * len(questions) if isinstance(context, str) else list(context)
        if len(questions) != len(contexts):
            raise ValueError(f"as many contexts as questions are needed, got {len(contexts)} and {len(questions)}")
        several = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
    else:
        raise ValueError("give question=... and context=..., or a dictionary with both")
    for number, example in enumerate(several, 1):
        for name in ("question", "context"):
            text = example.get(name) if isinstance(example, Mapping) else None
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"question {number} needs a {name} that is a text and not empty, got {text!r}")
    return one, several


def _log_shares(window: dict[str, Any], name: str) -> np.ndarray:
    """Log-probabilities of the tokens of the context and of the first one, which stands for no answer."""
    scores_T = window[name][0].float().cpu()[window["attention_mask"][0].bool().cpu()].numpy()
    allowed = np.array([offset is not None for offset in window["window"].offsets])
    allowed[0] = True
    masked_T = np.where(allowed, scores_T, -np.inf)
    largest = masked_T.max()
    shares_T: np.ndarray = masked_T - largest - np.log(np.exp(masked_T - largest).sum())
    return shares_T
