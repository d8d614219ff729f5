"""Files as in GLUE's official archives, written here; row for row what the tasks expect."""

import lzma

import pytest

from sibert.evaluation.examples import examples_of
from sibert.evaluation.glue import LAYOUTS, glue_rows
from sibert.evaluation.tasks import TASKS

FILES = {
    "cola": {
        "train.tsv": 'gj04\t1\t\tThey drank "the pub.\ngj04\t0\t*\tThey drank the pub dry it.\n',
        "dev.tsv": "gj04\t1\t\tThe sailors rode the breeze.\n",
        "test.tsv": "index\tsentence\n0\tBill whistled past the house.\n",
    },
    "sst2": {
        "train.tsv": "sentence\tlabel\na gem \t1\nno wit \t0\n",
        "dev.tsv": "sentence\tlabel\nfine \t1\n",
        "test.tsv": "index\tsentence\n0\tuneasy mishmash\n",
    },
    "mrpc": {
        "train.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tA said.\tSaid A.\n0\t3\t4\tB\tC\n",
        "dev.tsv": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\tD\tE\n",
        "test.tsv": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t6\tF\tG\n",
    },
    "stsb": {
        "train.tsv": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tg\tf\ty\t1\tn\tn\tA plane.\tAn airplane.\t5.000\n1\tg\tf\ty\t1\tn\tn\tA man.\tA dog.\t0.500\n",
        "dev.tsv": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tg\tf\ty\t1\tn\tn\tOne.\tTwo.\t2.4\n",
    },
    "qqp": {
        "train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\tHow?\tIn what way?\t1\n"
        "2\t3\tbroken row\n3\t5\t6\tWho?\tWhen?\t0\n",
        "dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\tWhy?\tHow come?\t1\n",
        "test.tsv": "id\tquestion1\tquestion2\n0\tA?\tB?\n",
    },
    "mnli": {
        "train.tsv": "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\t1\t1n\tf\tIt rains.\tIt is wet.\tneutral\tentailment\n"
        "1\t1\t1c\tf\tIt rains.\tIt is dry.\tx\tcontradiction\n",
        "dev_matched.tsv": "index\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n0\tA\tB\tx\tx\tneutral\n",
        "dev_mismatched.tsv": "index\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n0\tC\tD\tx\tx\tentailment\n",
        "test_matched.tsv": "index\tsentence1\tsentence2\n0\tE\tF\n",
        "test_mismatched.tsv": "index\tsentence1\tsentence2\n0\tG\tH\n",
    },
    "qnli": {
        "train.tsv": "index\tquestion\tsentence\tlabel\n0\tWho?\tAda.\tentailment\n1\tWhen?\tHere.\tnot_entailment\n",
        "dev.tsv": "index\tquestion\tsentence\tlabel\n0\tWhy?\tSo.\tnot_entailment\n",
        "test.tsv": "index\tquestion\tsentence\n0\tWhy?\tSo.\n",
    },
    "rte": {
        "train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA b.\tB.\tentailment\n1\tC.\tD.\tnot_entailment\n",
        "dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tE.\tF.\tentailment\n",
        "test.tsv": "index\tsentence1\tsentence2\n0\tG.\tH.\n",
    },
    "wnli": {
        "train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n1\tC.\tD.\t0\n",
        "dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tE.\tF.\t0\n",
        "test.tsv": "index\tsentence1\tsentence2\n0\tG.\tH.\n",
    },
}
"""Official layouts, a few rows of our own; MNLI without its parses."""

TRAIN_LABELS = {
    "cola": [1, 0],
    "sst2": [1, 0],
    "mrpc": [1, 0],
    "stsb": [5.0, 0.5],
    "qqp": [1, 0],
    "mnli": [0, 2],
    "qnli": [0, 1],
    "rte": [0, 1],
    "wnli": [1, 0],
}


def written(folder, name, packed=False):
    for file, text in FILES[name].items():
        if packed:
            (folder / f"{file}.xz").write_bytes(lzma.compress(text.encode()))
        else:
            (folder / file).write_text(text)
    return examples_of(TASKS[name], glue_rows(TASKS[name], folder))


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_files(tmp_path, name):
    examples = written(tmp_path, name)
    train = examples.splits["train"]
    assert train["label"][:] == TRAIN_LABELS[name]
    assert ("text_pair" in train.column_names) == (name not in ("cola", "sst2"))
    for split in examples.task.splits:
        assert len(examples.splits[split]["label"]) == 1
    for split in examples.splits:
        if split.startswith("test"):
            assert "label" not in examples.splits[split].column_names


def test_packed_files(tmp_path):
    assert written(tmp_path, "cola", packed=True).splits["train"]["text"][0] == 'They drank "the pub.'


def test_microsofts_original_of_mrpc(tmp_path):
    for name, source in (("msr_paraphrase_train.txt", "train.tsv"), ("msr_paraphrase_test.txt", "dev.tsv")):
        (tmp_path / name).write_text(FILES["mrpc"][source])
    examples = examples_of(TASKS["mrpc"], glue_rows(TASKS["mrpc"], tmp_path))
    assert {name: len(split) for name, split in examples.splits.items()} == {"train": 2, "validation": 1, "test": 1}


def test_a_folder_without_the_files(tmp_path):
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"none of the files of rte: expected train.tsv, dev.tsv, test.tsv; found other"
    ):
        glue_rows(TASKS["rte"], tmp_path)


def test_a_wrong_label_is_told_by_file_row_and_column(tmp_path):
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tyes\n")
    with pytest.raises(ValueError, match=r"train.tsv, row 2, column 'label': 'yes' is none of the labels"):
        examples_of(TASKS["rte"], glue_rows(TASKS["rte"], tmp_path))
