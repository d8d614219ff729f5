import datasets
import huggingface_hub
import pytest

from sibert.data import find_sources, load_corpus
from sibert.data.corpora import document_digest, split_position


@pytest.fixture
def load(tmp_path):
    def load(*paths, **options):
        options = {"validation_fraction": 0.2, "cache_dir": tmp_path / "cache"} | options
        return load_corpus(find_sources([str(path) for path in paths]), **options)

    return load


def write(path, documents):
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def test_no_text_is_in_both_splits_and_none_is_lost(tmp_path, load, texts):
    corpus = load(write(tmp_path / "a.txt", texts))
    train, validation = set(corpus.train["text"]), set(corpus.validation["text"])
    assert train.isdisjoint(validation)
    assert train | validation == set(texts)
    assert corpus.report.train_documents == len(train)
    assert corpus.report.validation_documents == len(validation)


def test_documents_keep_their_order(tmp_path, load, texts):
    train = load(write(tmp_path / "a.txt", texts)).train["text"]
    assert list(train) == [text for text in texts if text in set(train)]


def test_adding_documents_moves_none(tmp_path, load, texts):
    before = load(write(tmp_path / "a.txt", texts[:60]))
    after = load(write(tmp_path / "b.txt", texts[60:]), tmp_path / "a.txt")
    assert set(before.train["text"]) <= set(after.train["text"])
    assert set(before.validation["text"]) <= set(after.validation["text"])


def test_the_split_follows_the_fraction():
    fraction, count = 0.05, 20_000
    held_out = sum(split_position(document_digest(f"text {index}")) < fraction for index in range(count))
    assert abs(held_out - fraction * count) < 5 * (count * fraction * (1 - fraction)) ** 0.5  # five standard deviations


def test_exact_duplicates_are_removed_also_across_files(tmp_path, load, texts):
    write(tmp_path / "a.txt", texts + texts[:7])
    write(tmp_path / "b.txt", texts[:3])
    corpus = load(tmp_path / "a.txt", tmp_path / "b.txt")
    assert (corpus.report.documents, corpus.report.duplicates) == (len(texts), 10)
    assert load(write(tmp_path / "c.txt", texts)).report.duplicates == 0


def test_few_files_are_taken_apart_at_empty_lines_and_many_are_not(tmp_path, load, texts):
    write(tmp_path / "one.txt", texts[:20])
    assert load(tmp_path / "one.txt").report.rule == "blank-line"
    assert load(tmp_path / "one.txt").report.documents == 20
    many = tmp_path / "many"
    many.mkdir()
    for index in range(100):
        write(many / f"{index}.txt", [texts[index], f"second part of {index}"])
    assert (load(many).report.rule, load(many).report.documents) == ("file", 100)
    assert load(many, documents="blank-line").report.documents == 200
    (many / "0.txt").unlink()
    assert load(many).report.rule == "blank-line"


def test_rows_count_as_documents_for_that_rule(tmp_path, load, texts):
    (tmp_path / "rows.csv").write_text("text\n" + "\n".join(texts))
    write(tmp_path / "a.txt", ["one part of a file", "another part"])
    report = load(tmp_path / "rows.csv", tmp_path / "a.txt").report
    assert (report.rule, report.documents) == ("file", len(texts) + 1)


def test_what_could_not_be_read_is_reported_also_from_the_cache(tmp_path, load, texts):
    write(tmp_path / "a.txt", texts)
    (tmp_path / "b.txt").write_bytes(b"abc\xff")
    for _ in range(2):
        report = load(tmp_path / "a.txt", tmp_path / "b.txt").report
        assert report.skipped == 1
        assert "b.txt: a document is not valid UTF-8 (byte 0xff at byte offset 3" in report.skipped_messages[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "There is no text in a.txt"),
        (b" \n\n \n", "There is no text in a.txt"),
        (b"\x00\x01\x02", "There is no text in a.txt. a.txt: a document looks binary"),
        (b"\xff\xfe", "There is no text in a.txt. a.txt: a document is not valid UTF-8"),
        (b"only one paragraph", "only one document"),
    ],
)
def test_empty_input_is_refused_with_the_reason(tmp_path, load, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.txt")


def test_an_empty_side_is_refused_and_the_error_names_a_fraction_that_works(tmp_path, load, texts):
    path = write(tmp_path / "a.txt", texts[:4])
    positions = sorted(split_position(document_digest(text)) for text in texts[:4])
    with pytest.raises(ValueError, match=f"above {positions[0]:.4f} holds out at least one"):
        load(path, validation_fraction=positions[0] / 2)
    with pytest.raises(ValueError, match=f"below {positions[-1]:.4f} leaves at least one"):
        load(path, validation_fraction=(1 + positions[-1]) / 2)
    assert load(path, validation_fraction=positions[0] + 1e-4).report.validation_documents == 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(tmp_path, load, texts, fraction):
    with pytest.raises(ValueError, match="expected 0 < fraction < 1"):
        load(write(tmp_path / "a.txt", texts), validation_fraction=fraction)


def test_an_unknown_rule_is_refused(tmp_path, load, texts):
    with pytest.raises(ValueError, match="expected 'auto', 'file' or 'blank-line'"):
        load(write(tmp_path / "a.txt", texts), documents="line")


def test_a_change_of_a_file_makes_a_new_corpus(tmp_path, load, texts):
    first = load(write(tmp_path / "a.txt", texts))
    again = load(tmp_path / "a.txt")
    changed = load(write(tmp_path / "a.txt", [*texts, "one more"]))
    assert first.key == again.key != changed.key
    assert changed.report.documents == first.report.documents + 1


def test_a_hub_name_without_a_network_is_one_clear_sentence(load, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="neither a file nor a folder here") as caught:
        load("owner/name")
    assert "there is no network, or offline mode is on." in str(caught.value)
    assert "\n" not in str(caught.value)


class _Hub:
    def dataset_info(self, name):
        return huggingface_hub.hf_api.DatasetInfo(id=name, sha="0" * 40)


def test_a_hub_data_set_is_read_as_a_stream_of_rows(load, monkeypatch, texts):
    rows = datasets.Dataset.from_dict({"id": range(len(texts)), "text": texts}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    monkeypatch.setattr(huggingface_hub, "HfApi", _Hub)
    corpus = load("owner/name:config")
    assert (corpus.report.documents, corpus.report.rule) == (len(texts), "file")
    with pytest.raises(ValueError, match="no column 'body'; columns found: id, text"):
        load("owner/name", text_column="body")


def test_a_connection_that_breaks_off_is_not_taken_for_a_cache_that_cannot_be_written(load, monkeypatch, texts):
    def rows():
        yield from ({"text": text} for text in texts[:5])
        raise OSError("the server went away")

    stream = datasets.IterableDataset.from_generator(
        rows, features=datasets.Features({"text": datasets.Value("string")})
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: stream)
    monkeypatch.setattr(huggingface_hub, "HfApi", _Hub)
    with pytest.raises(ValueError, match=r"'owner/name' .* of the Hugging Face hub it cannot be read"):
        load("owner/name")
