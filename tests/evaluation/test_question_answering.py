"""The pipeline that transformers has removed: the call and the result that its users know."""

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForQuestionAnswering,
    pipeline,
)

import sibert
from sibert.evaluation.question_answering import QuestionAnsweringPipeline
from tests import downstream

CONTEXT = "Anna  lives in Oslo, and Ben in Rome. " * 6
QUESTION = "Where lives Anna?"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(downstream.pretrained(tmp_path_factory.mktemp("models") / "sibert"))


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = sibert.SibertConfig.of_size("nano", vocab_size=len(tokenizer), max_position_embeddings=64)
    return sibert.SibertForQuestionAnswering(config).eval()


@pytest.fixture(scope="module")
def pipe(model, tokenizer):
    return pipeline("question-answering", model=model, tokenizer=tokenizer)


def test_ours_is_there_where_transformers_has_none(pipe):
    assert type(pipe) is QuestionAnsweringPipeline


def test_the_score_is_the_product_of_two_probabilities(pipe, model, tokenizer):
    context = "Anna lives in Oslo."
    inputs = tokenizer(QUESTION, context, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    allowed = torch.tensor([part == 1 for part in inputs.sequence_ids()])
    allowed[0] = True
    starts_T, ends_T = (
        scores_1T[0].masked_fill(~allowed, -torch.inf).softmax(0)
        for scores_1T in (outputs.start_logits, outputs.end_logits)
    )
    allowed[0] = False
    products_TT = (starts_T[:, None] * ends_T[None]).triu() * allowed[:, None] * allowed[None]
    start, end = divmod(int(products_TT.argmax()), len(allowed))
    answer = pipe(question=QUESTION, context=context)
    assert answer["score"] == pytest.approx(products_TT.max().item(), rel=1e-5)
    assert (answer["start"], answer["end"]) == (
        inputs.token_to_chars(start).start,
        inputs.token_to_chars(end).end,
    )


def test_a_model_whose_positions_do_not_begin_at_0(tokenizer):
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    small = RobertaForQuestionAnswering(RobertaConfig(**sizes, max_position_embeddings=32)).eval()
    answer = pipeline("question-answering", model=small, tokenizer=tokenizer)(question=QUESTION, context=CONTEXT)
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]


def test_long_contexts_are_read_to_their_end(pipe):
    answers = pipe(question=QUESTION, context=CONTEXT, top_k=200, max_seq_len=24, doc_stride=4)
    assert all(CONTEXT[one["start"] : one["end"]] == one["answer"] for one in answers)
    assert max(one["end"] for one in answers) > 200
    assert [one["score"] for one in answers] == sorted((one["score"] for one in answers), reverse=True)


def test_one_or_many_in_every_form_of_the_call(pipe):
    one = pipe(question=QUESTION, context=CONTEXT)
    assert pipe({"question": QUESTION, "context": CONTEXT}) == one
    assert pipe(question=[QUESTION] * 2, context=CONTEXT) == [one, one]
    assert pipe([{"question": QUESTION, "context": CONTEXT}] * 3) == [one] * 3
    batched = pipe([{"question": QUESTION, "context": CONTEXT}] * 3, batch_size=2)
    assert [(a["start"], a["end"]) for a in batched] == [(one["start"], one["end"])] * 3


def test_no_answer_is_one_only_if_it_is_asked_for(pipe):
    number = 10_000
    without = pipe(question=QUESTION, context="Oslo.", top_k=number)
    with_none = pipe(question=QUESTION, context="Oslo.", top_k=number, handle_impossible_answer=True)
    assert all(one["answer"] for one in without)
    assert sum(not one["answer"] for one in with_none) == 1


def test_answers_are_no_longer_than_is_asked(pipe):
    answers = pipe(question=QUESTION, context=CONTEXT, top_k=50, max_answer_len=1)
    assert all(" " not in one["answer"] for one in answers)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"question": QUESTION}, "give question=... and context=..., or a dictionary with both"),
        ({"question": [QUESTION] * 2, "context": [CONTEXT]}, "as many contexts as questions are needed, got 1 and 2"),
        ({"question": "  ", "context": CONTEXT}, "question 1 needs a question that is a text and not empty, got '  '"),
        ({"question": [QUESTION] * 2, "context": [CONTEXT, None]}, "question 2 needs a context that is a text"),
        ({"question": QUESTION, "context": CONTEXT, "top_k": 0}, "top_k must be at least 1, got 0"),
        ({"question": QUESTION, "context": CONTEXT, "max_seq_len": 100}, "the model reads rows of 8 to 64 tokens"),
    ],
)
def test_mistakes(call, message, pipe):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        pipe(**call)


def test_models_of_transformers_answer_and_others_are_refused(tokenizer, caplog):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    answer = pipeline("question-answering", model=BertForQuestionAnswering(config), tokenizer=tokenizer)(
        question=QUESTION, context=CONTEXT
    )
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]
    assert "not supported" not in caplog.text
    pipeline("question-answering", model=BertForSequenceClassification(config), tokenizer=tokenizer)
    assert "not supported" in caplog.text
