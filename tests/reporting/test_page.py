import html.parser
import os
import subprocess
import sys
from collections import Counter

import pytest

from sibert.reporting import load_run, render_page, write_report
from sibert.reporting.canvas import COLOURS, plain_number
from tests.reporting.run_writer import default_records, eval_record, train_record, twin_record, write_run

VOID = {"meta", "br", "hr", "img", "input", "link", "col"}
GROUP_FIGURES = ("norm", "effective-lr", "angular-update", "intrinsic-lr", "gradient", "clipping")
BARE = [{"kind": "train", "step": 1}]  # no figure: such a page is made at once
COMMON_FIGURES = ("loss-by-step", "loss-by-time", "throughput", "memory")


class Reader(html.parser.HTMLParser):
    """Checks that every element is closed in order, and collects what a reader would see."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.references, self.text = [], Counter(), Counter(), [], []
        self.inside = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids[value] += 1
            if name in ("href", "xlink:href", "src", "srcset", "data", "action") or name.startswith("on"):
                self.references.append((tag, name, value))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        self.inside.setdefault(self.open[-1] if self.open else "", []).append(data)


def figures_of(reader):
    known = set(COMMON_FIGURES) | {f"group-encoder-{name}" for name in GROUP_FIGURES}
    return {key for key in reader.ids if key in known}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    sibert = write_run(root / "sibert", environment={"device": "cpu", "parameters": 123456})
    twin = write_run(root / "twin", default_records(twin_record), {"model": "bert", "optimizer": "adamw"})
    page = write_report([sibert, twin], root / "report.html").read_text(encoding="utf-8")
    assert page == render_page([load_run(sibert), load_run(twin)])  # the same runs give the same page
    return page


def test_the_page_is_well_formed_and_ids_are_unique(page):
    reader = Reader(page)
    assert [key for key, count in reader.ids.items() if count > 1] == []
    assert reader.tags["html"] == reader.tags["main"] == 1


def test_every_figure_is_there_with_a_title_and_a_caption(page):
    reader = Reader(page)
    assert figures_of(reader) == {*COMMON_FIGURES, *(f"group-encoder-{name}" for name in GROUP_FIGURES)}
    assert reader.tags["svg"] == reader.tags["figure"] == reader.tags["figcaption"] == 10
    assert page.count('<svg class="plot" role="img"') == page.count("aria-labelledby=") == 10


def test_the_page_needs_nothing_from_outside(page):
    reader = Reader(page)
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert not {"script", "link", "iframe", "object", "img"} & set(reader.tags)
    ids = set(reader.ids)
    for tag, name, value in reader.references:
        assert (tag, name) == ("use", "href")
        assert value.removeprefix("#") in ids
    for reference in page.split("url(#")[1:]:
        assert reference.split(")")[0] in ids


def test_the_table_says_what_a_run_cost_and_reached(page):
    text = " ".join(Reader(page).text)
    for expected in ("123\u202f456", "12\u202f800", "6.250", "20.5 s", "8\u202f105", "300 MiB", "9.0 MiB", "adamw"):
        assert expected in text


def test_the_first_sentence_compares_with_the_unigram_entropy(tmp_path):
    records = [*BARE, eval_record(10, mlm_loss=5.0)]
    page = render_page([load_run(write_run(tmp_path / "run", records))])
    assert "after 10 steps the validation masked-LM loss is 5.000 nats, 1.250 below the unigram entropy (6.250)" in page
    assert ">10 of 200<" in page  # the run goes on


def test_only_options_that_differ_stand_in_the_difference(tmp_path):
    first = write_run(tmp_path / "a", BARE, {"lr": 1e-3})
    second = write_run(tmp_path / "b", BARE, {"lr": 2e-3, "extra": None})
    page = render_page([load_run(first), load_run(second)])
    difference = page[page.index("What differs") : page.index("Every option")]
    assert "<code>lr</code>" in difference
    assert "0.002" in difference
    assert "<code>extra</code>" in difference
    assert "<code>size</code>" not in difference
    assert "<code>size</code>" in page[page.index("Every option") :]


def test_equal_recipes_have_no_difference_and_one_run_nothing_to_differ_from(tmp_path):
    runs = [load_run(write_run(tmp_path / name, BARE)) for name in ("a", "b")]
    assert "The recipes are the same." in render_page(runs)
    assert "The recipes are the same." not in render_page(runs[:1])


def test_a_run_without_invariant_groups_just_lacks_their_figures(tmp_path):
    page = render_page([load_run(write_run(tmp_path / "twin", default_records(twin_record)))])
    assert figures_of(Reader(page)) == set(COMMON_FIGURES)
    assert "Scale-invariant group" not in page


def test_many_groups_get_an_overview_and_are_folded(tmp_path):
    encoder = train_record(10)["groups"]["encoder"]
    groups = {f"layer.{index}": encoder | {"angular_update": 0.01 * index} for index in range(5)}
    records = [train_record(step, groups=groups) for step in range(10, 210, 10)]
    page = render_page([load_run(write_run(tmp_path / "run", records))])
    ids = set(Reader(page).ids)
    overview = {"groups-angular-update", "groups-norm", "groups-clipping"}
    assert overview <= ids
    for index in range(5):  # a dot is escaped by its number
        assert {f"group-layer_46{index}-norm", f"group-layer_46{index}-angular-update"} <= ids
        assert f"group-layer_46{index}-clipping" not in ids
    assert page.count("<details") >= len(groups)
    assert not overview & set(Reader(render_page([load_run(write_run(tmp_path / "one"))])).ids)


def test_a_run_with_nothing_but_steps_still_has_a_page(tmp_path):
    reader = Reader(render_page([load_run(write_run(tmp_path / "run", BARE, environment={}))]))
    assert reader.tags["svg"] == 0
    assert "No run has been evaluated yet." in reader.text


HOSTILE = ("<script>alert(1)<", 'a"onload="b', "x & y", "$\\frac{$", "</title><blink>", "日本語", "var(--ink)#010101")


def test_whatever_comes_from_files_is_escaped(tmp_path):
    name = "".join(HOSTILE).replace("/", "∕")
    groups = {"".join(HOSTILE): train_record(10)["groups"]["encoder"]}
    run = write_run(
        tmp_path / name,
        [train_record(10, groups=groups), train_record(20, groups=groups), eval_record(20)],
        recipe={"model": HOSTILE[0], "size": HOSTILE[4], **{text: {text: [text]} for text in HOSTILE}},
        environment={text: text for text in HOSTILE},
    )
    reader = Reader(render_page([load_run(run), load_run(write_run(tmp_path / "other", BARE))]))
    assert not {"script", "blink"} & set(reader.tags)
    assert {tag for tag, _, _ in reader.references} == {"use"}
    assert set(HOSTILE) <= set(reader.inside["code"])
    assert any(name in title for title in reader.inside["title"])  # tool tips of curves


def test_runs_of_the_same_name_are_told_apart_by_their_parents(tmp_path):
    runs = [load_run(write_run(tmp_path / parent / "run", BARE)) for parent in ("first", "second")]
    runs.append(load_run(write_run(tmp_path / "other", BARE)))
    headings = Reader(render_page(runs)).text
    assert {"first/run", "second/run", "other"} <= set(headings)


def test_more_runs_than_colours_are_noted(tmp_path):
    runs = [load_run(write_run(tmp_path / f"run{i}", BARE)) for i in range(COLOURS + 1)]
    assert "colours repeat" in render_page(runs)
    assert "colours repeat" not in render_page(runs[:-1])


def test_notes_of_reading_and_skipped_steps_are_shown(tmp_path):
    records = [BARE[0] | {"groups": {"encoder": {"skipped_steps": 7}}}]
    page = render_page([load_run(write_run(tmp_path / "run", records, tail='{"ki'))])
    assert "half-written" in page
    assert "7 steps were skipped because a gradient was not finite" in page


def test_a_diverged_run_does_not_hide_the_others(tmp_path):
    wild = [train_record(step, loss=9.0 if step == 10 else 10.0**step) for step in range(10, 200, 10)]
    wild += [train_record(200, loss=float("nan")), eval_record(200, loss=None, mlm_loss=None)]
    runs = [load_run(write_run(tmp_path / "wild", wild)), load_run(write_run(tmp_path / "tame"))]
    page = render_page(runs)
    assert "not finite" in page
    svg = page[page.index('<figure id="loss-by-step">') : page.index('<figure id="loss-by-time">')]
    labels = Reader(svg).inside["text"]
    assert {"6", "8"} <= {label.strip() for label in labels}  # still an axis of nats, not of 1e190


def test_groups_whose_learning_rate_ends_at_zero_are_drawn(tmp_path):
    last = train_record(200)
    last["groups"]["encoder"] |= {"eta": 0.0, "intrinsic_lr": 0.0, "effective_lr": 0.0, "equilibrium_norm": 0.0,
                                  "angular_update": 0.0}  # fmt: skip
    page = render_page([load_run(write_run(tmp_path / "run", [*default_records()[:-2], last]))])
    assert len(figures_of(Reader(page))) == 10


@pytest.mark.parametrize(
    "changes",
    [{"loss": 1e308}, {"loss": -1.7e308}, {"groups": {"encoder": {"param_norm": 1.0, "intrinsic_lr": -1.0}}}],
    ids=["huge", "huge and negative", "without a root"],
)
def test_numbers_that_cannot_be_drawn_leave_a_gap_and_no_warning(tmp_path, changes):
    records = [train_record(1, **changes), train_record(2), train_record(3, **changes)]
    page = render_page([load_run(write_run(tmp_path / "run", records))])
    assert 'id="loss-by-step"' in page


def test_half_a_surrogate_pair_in_a_name_is_written_as_a_question_mark(tmp_path):
    run = write_run(tmp_path / "run", BARE, recipe={"note": "half \ud800 pair"})
    assert "half ? pair" in write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_long_run_makes_no_heavy_page(tmp_path):
    run = load_run(write_run(tmp_path / "run", [train_record(step) for step in range(1, 8001)]))
    assert len(render_page([run])) < 1_000_000


def test_the_report_replaces_a_file_and_makes_folders(tmp_path):
    run = write_run(tmp_path / "run", BARE)
    out = tmp_path / "deep" / "er" / "report.html"
    assert write_report([run], out) == out
    out.write_text("old")
    write_report([str(run)], str(out))
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_a_failed_write_says_so_and_leaves_the_old_file(tmp_path, monkeypatch):
    run, out = write_run(tmp_path / "run", BARE), tmp_path / "out" / "report.html"
    out.parent.mkdir()
    out.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"cannot write the report to .*: No space left on device; give a writable place"):
        write_report([run], out)
    assert [(path.name, path.read_text()) for path in out.parent.iterdir()] == [("report.html", "old")]


def test_an_output_below_a_file_cannot_be_written(tmp_path):
    run = write_run(tmp_path / "run", BARE)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write the report to"):
        write_report([run], tmp_path / "file" / "report.html")


def test_requests_that_make_no_sense_are_refused(tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="give at least one run directory"):
        write_report([], tmp_path / "out.html")
    with pytest.raises(TypeError, match="expected a sequence of run directories"):
        write_report(str(run), tmp_path / "out.html")
    with pytest.raises(ValueError, match="is a folder; give the name of the HTML file"):
        write_report([run], tmp_path)
    with pytest.raises(ValueError, match="named twice"):
        write_report([run, f"{run}/."], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.02, "0.02"), (350, "350"), (20000, "20\u2009000"), (3e-5, "3·10⁻⁵"), (1e-6, "10⁻⁶"), (2e7, "2·10⁷"),
     (-5, "−5"), (float("inf"), "")],
)  # fmt: skip
def test_tick_labels_are_plain_text(value, text):
    assert plain_number(value) == text


def test_importing_does_not_import_matplotlib_and_reporting_does_not_import_pyplot(tmp_path):
    run = write_run(tmp_path / "run", [train_record(10)])
    script = (
        "import sys, sibert.reporting as r; assert 'matplotlib' not in sys.modules; "
        f"r.write_report([{str(run)!r}], {str(tmp_path / 'r.html')!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
