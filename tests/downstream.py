"""Small pre-trained folders and small files in the official formats, for the tests of fine-tuning."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig, BertForMaskedLM, ModernBertForMaskedLM

from sibert.data import train_tokenizer
from sibert.models import SibertConfig, SibertForMaskedLM, modern_bert_config, size_of

GOOD = ("a fine film", "great and warm", "the best story", "lovely music and light", "a great cast")
BAD = ("a dull film", "cold and slow", "the worst story", "awful music and noise", "a poor cast")
PLACES = ("Paris", "Rome", "Oslo", "Lima", "Cairo")
PEOPLE = ("Anna", "Boris", "Clara", "David", "Emma")


def texts() -> list[str]:
    """All words that the files below use."""
    sentences = [f"{name} lives in {place} . who lives in {place} ? where" for name in PEOPLE for place in PLACES]
    return [*GOOD, *BAD, *sentences, "yes no 0 1 2 3 4 5 the a of"]


def pretrained(folder: Path, kind: str = "sibert", length: int = 48) -> Path:
    """A model that knows nothing, with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(lambda: iter(texts() * 5), 200)
    sizes = {**size_of("nano"), "vocab_size": len(tokenizer), "max_position_embeddings": length}
    sizes["pad_token_id"] = tokenizer.pad_token_id
    if kind == "bert":
        model = BertForMaskedLM(BertConfig(**sizes))
    elif kind == "modernbert":
        model = ModernBertForMaskedLM(modern_bert_config(**sizes))
    else:
        model = SibertForMaskedLM(SibertConfig(**sizes, invariance=kind if kind != "sibert" else "matrix"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lines(file: Path, *rows: tuple[object, ...]) -> None:
    """Tab-separated, as GLUE's files are: nothing is quoted."""
    file.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def sentiment(number: int = 24) -> list[tuple[str, int]]:
    """Sentences and whether they are kind."""
    return [((GOOD if i % 2 else BAD)[i % 5] + " ." * (i // 10), i % 2) for i in range(number)]


def glue(folder: Path, task: str) -> Path:
    """The files of a task, as the official archive has them."""
    folder.mkdir()
    pairs = [(f"{GOOD[i % 5]} {i}", f"{(GOOD if i % 2 else BAD)[(i * 3) % 5]}", i % 2) for i in range(16)]
    names = ("entailment", "not_entailment")
    for split in ("train", "dev"):
        file = folder / f"{split}.tsv"
        if task == "cola":
            write_lines(file, *(("x", label, "", text) for text, label in sentiment()))
        elif task == "sst2":
            write_lines(file, ("sentence", "label"), *sentiment())
        elif task == "mrpc":
            head = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
            write_lines(file, head, *((label, 1, 2, one, two) for one, two, label in pairs))
        elif task == "stsb":
            head = ("index", "sentence1", "sentence2", "score")
            write_lines(file, head, *((i, one, two, 5.0 * y * i / 16) for i, (one, two, y) in enumerate(pairs)))
        elif task == "qqp":
            head = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
            write_lines(file, head, *((i, 1, 2, one, two, y) for i, (one, two, y) in enumerate(pairs)))
        elif task == "mnli":
            kinds = ("entailment", "neutral", "contradiction")
            head = ("index", "sentence1", "sentence2", "gold_label")
            rows = [(i, one, two, kinds[i % 3]) for i, (one, two, _) in enumerate(pairs)]
            for name in ("train",) if split == "train" else ("dev_matched", "dev_mismatched"):
                write_lines(folder / f"{name}.tsv", head, *rows)
        elif task == "qnli":
            head = ("index", "question", "sentence", "label")
            write_lines(file, head, *((i, one, two, names[y]) for i, (one, two, y) in enumerate(pairs)))
        elif task in ("rte", "wnli"):
            head = ("index", "sentence1", "sentence2", "label")
            labels = names if task == "rte" else ("0", "1")
            write_lines(file, head, *((i, one, two, labels[y]) for i, (one, two, y) in enumerate(pairs)))
    return folder


def squad(folder: Path, version: str = "1.1") -> Path:
    """SQuAD's files: people and places, with contexts that are longer than a window."""
    folder.mkdir()
    for split in ("train", "dev"):
        articles = []
        for number in range(6):
            who, where = PEOPLE[number % 5], PLACES[(number * 2) % 5]
            filler = "The  film is fine — and   the music is great . " * (number % 4)
            context = f"{filler}{who} lives in {where}. "
            questions = [
                {
                    "id": f"{split}{number}who",
                    "question": f"Who lives in {where}?",
                    "answers": [{"text": who, "answer_start": context.index(who)}],
                },
                {
                    "id": f"{split}{number}where",
                    "question": f"Where lives {who}?",
                    "answers": [{"text": where, "answer_start": context.rindex(where)}],
                },
            ]
            if version == "2.0":
                for question in questions:
                    question["is_impossible"] = False
                questions.append(
                    {"id": f"{split}{number}no", "question": "Who is cold?", "answers": [], "is_impossible": True}
                )
            articles.append({"title": who, "paragraphs": [{"context": context, "qas": questions}]})
        content = {"version": version, "data": articles}
        (folder / f"{split}-v{version}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def own_files(folder: Path, task: str) -> Path:
    """A user's own files for one of the generic tasks, each in another format."""
    folder.mkdir()
    for split, number in (("train", 24), ("validation", 10)):
        if task in ("classification", "regression"):
            with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                kind = task == "classification"
                writer.writerows(
                    (t, ("bad", "good")[y] if kind else 2.5 * y + 0.1 * len(t)) for t, y in sentiment(number)
                )
        elif task == "pair-classification":
            rows = [(t, GOOD[i % 5], i % 2) for i, (t, _) in enumerate(sentiment(number))]
            write_lines(folder / f"{split}.tsv", ("text", "text_pair", "label"), *rows)
        elif task == "token-classification":
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for i in range(number):
                    who, where = PEOPLE[i % 5], PLACES[i * 2 % 5]
                    row = {"words": [who, "lives", "in", where, "."], "tags": ["B-PER", "O", "O", "B-LOC", "O"]}
                    file.write(json.dumps(row) + "\n")
        elif task == "embedding":
            table = pa.table({"anchor": [f"{who} lives" for who in PEOPLE], "positive": [f"in {p}" for p in PLACES]})
            pq.write_table(table, folder / f"{split}.parquet")
        else:
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for i in range(number):
                    who, where = PEOPLE[i % 5], PLACES[i * 2 % 5]
                    context = f"{who} lives in {where} ."
                    file.write(json.dumps({"question": f"where {who}", "context": context, "answers": where}) + "\n")
    return folder
