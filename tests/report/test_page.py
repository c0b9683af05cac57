"""The page: what is on it, what may be missing, what a model's text cannot do, and what is said of bad folders."""

import base64
import hashlib
import html
import json
import re
import shutil
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.report.page import _series, write_report

EVERY = {
    *("data", "tokenizer", "pretrain", "pretrain-speed", "sft", "sft-speed", "eval-ko", "eval-en", "chat"),
    *("judge-total", "judge-metrics", "judge-categories", "judge-pairs"),
}


@pytest.fixture(scope="module")
def report(invented):
    """The page's path and text, of a run compared with another."""
    path = write_report([invented(), invented("다른-모델", 0.05)])
    return path, path.read_text(encoding="utf-8")


def text_of(page):
    """What a reader sees."""
    return " ".join(
        html.unescape(re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]+>", " ", page, flags=re.S)).split()
    )


def test_every_picture_is_there_and_on_the_page(report):
    path, page = report
    assert {file.stem for file in path.parent.glob("*.png")} == EVERY
    inside = {base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)}
    assert inside == {file.read_bytes() for file in path.parent.glob("*.png")}
    assert page.count("<img") == page.count('alt="') == len(EVERY)


def test_the_page_asks_for_nothing_outside(report):
    seen = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: seen.append((tag, dict(attributes)))
    parser.feed(report[1])
    assert not {"link", "iframe", "object", "embed", "base", "video"} & {tag for tag, _ in seen}
    asked = {(name, value) for _, attributes in seen for name, value in attributes.items() if name in ("src", "href")}
    assert all(value.startswith("data:image/png;base64," if name == "src" else "#") for name, value in asked)
    targets = {attributes["id"] for _, attributes in seen if "id" in attributes}
    assert {value[1:] for name, value in asked if name == "href"} <= targets
    assert "url(" not in re.sub('base64,[^"]+', "", report[1])


def test_the_policy_lets_only_the_own_script_and_style_run(report):
    page = report[1]
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1])
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (body,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        assert f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" in policy


def test_what_a_model_wrote_is_text(report):
    page = report[1]
    assert "<script>document" not in page
    assert "<img src=x" not in page
    assert page.count("<script>") == 1
    assert "<script>document.title = 'broken'</script>" in text_of(page)


@pytest.mark.parametrize(
    "shown",
    [
        "too short 10, leak 10",  # the funnel
        "cp949 7, utf-8 393",
        "Korean 2.30 tokens a word, 4.50 bytes a token",
        "100,000 tokens, 100 steps",
        "boolq macro f1 0.410 ≈ guess ±0.020 0.500 0.350 500 0.460 0.300",  # ours, guessing, the other's, published
        "average 5 of 5 0.484",
        "en record: not invented",
        "register kept 80 % (75–85)",
        "invented-judge read 5 answers",
        "다른-모델 100 10 60 30 20 % 40 %",
        "tied against 다른-모델, by invented-judge: the orders disagree",
        "q-9: no JSON",
        "CC BY 4.0 120",
        "vocab_size = ",  # the recipe
        "pretrain 2001-09-09 01:46 UTC 1 min 15 s 9.9",
        "lm_eval 0",
    ],
)
def test_the_figures_are_on_the_page(report, shown):
    assert shown in text_of(report[1])


def test_each_question_has_both_answers_and_verdicts(report):
    items = re.findall(r"<details data-category=\"(.*?)\">(.*?)</details>", report[1], re.S)
    assert [category for category, _ in items][-1] == "요리 🍳"
    assert len(items) == 6
    for number, (_, body) in enumerate(items):
        seen = text_of(body)
        assert f"{number}번 질문" in seen
        assert "무늬만-모델" in seen
        assert "다른-모델" in seen
        assert seen.count("오븐에 구워요") == 2
        assert seen.count("accuracy: 그럴듯해요") == 2


def test_all_text_is_composed(report):
    assert unicodedata.is_normalized("NFC", report[1])


def test_an_interval_is_that_of_the_record_or_1_96_errors_and_gaps_stay():
    rows = [
        {"value": 0.5, "stderr": 0.1, "above": False},
        {"value": 0.5, "low": 0.4, "high": 0.9},
        {"value": 0.5},
        None,
    ]
    found = _series("a", rows, "value")
    np.testing.assert_allclose(found.low, [0.304, 0.4, np.nan, np.nan])
    np.testing.assert_allclose(found.high, [0.696, 0.9, np.nan, np.nan])
    np.testing.assert_allclose(found.values, [0.5, 0.5, 0.5, np.nan])
    assert found.weak == [True, False, False, False]


def test_a_run_of_one_stage_says_what_makes_the_rest(tmp_path, invented):
    root = tmp_path / "half"
    shutil.copytree(invented() / "pretrain", root / "pretrain")
    (root / "pretrain" / "stamp.json").unlink()
    with (root / "pretrain" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 110, "lo')  # a training is writing this line
    path = write_report([root])
    page = text_of(path.read_text(encoding="utf-8"))
    assert {file.stem for file in path.parent.glob("*.png")} == {"pretrain", "pretrain-speed"}
    assert "Not finished: these are the figures so far" in page
    for verb in ("clean", "tokenizer", "pack", "sft", "eval", "judge"):
        assert f"chatbaker {verb} RECIPE makes it" in page


def test_a_run_that_was_only_examined_speaks_of_no_bake(tmp_path, invented):
    root = tmp_path / "examined"
    shutil.copytree(invented() / "judge", root / "judge")
    page = text_of(write_report([root]).read_text(encoding="utf-8"))
    assert "invented-judge read 5 answers" in page
    assert "chatbaker eval RECIPE makes it" in page
    assert "chatbaker pretrain" not in page


def test_the_old_report_is_replaced(tmp_path, invented):
    root = tmp_path / "again"
    shutil.copytree(invented() / "export", root / "export")
    (root / "report").mkdir()
    (root / "report" / "old.png").touch()
    first = write_report([root]).read_bytes()
    assert [file.name for file in (root / "report").iterdir()] == ["index.html"]
    assert write_report([root, root]).read_bytes() == first, "the same records give the same page"


def test_runs_of_one_name_are_told_apart(tmp_path, invented):
    for parent in ("a", "b"):
        shutil.copytree(invented() / "export", tmp_path / parent / "mini" / "export")
    page = write_report([tmp_path / "a" / "mini", tmp_path / "b" / "mini"]).read_text(encoding="utf-8")
    assert "Compared with b/mini (neither evaluated nor judged)" in text_of(page)


def test_bad_folders_and_records(tmp_path):
    with pytest.raises(ChatBakerError, match="no such run folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(ChatBakerError, match="no records of a bake.*runs/NAME"):
        write_report([tmp_path])
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "results.json").write_text(json.dumps({"scores": []})[:-2], encoding="utf-8")
    with pytest.raises(ChatBakerError, match="results.json: not valid JSON"):
        write_report([tmp_path])
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("record", ["clean/funnel.json", "eval/results.json", "judge/scores.json", "eval/stamp.json"])
def test_json_that_no_verb_wrote_is_one_line_that_names_it(tmp_path, invented, record):
    root = tmp_path / "damaged"
    for stage in {"export", Path(record).parts[0]}:
        shutil.copytree(invented() / stage, root / stage)
    (root / record).write_text('{"x": {"y": 1}}', encoding="utf-8")
    with pytest.raises(ChatBakerError, match=f"{record}: not what a verb writes .*Run its verb again"):
        write_report([root])
    assert not (root / "report").exists()


def test_the_average_of_few_tasks_stands_beside_that_of_the_same_tasks(tmp_path, invented):
    root = tmp_path / "part"
    shutil.copytree(invented() / "eval", root / "eval")
    record = root / "eval" / "results.json"
    results = json.loads(record.read_text(encoding="utf-8"))
    results["published"]["en"] = {
        "models": {
            "Old 1B": {"anli_r1/acc": 0.1, "boolq/acc": 0.2, "piqa/acc_norm": 0.3, "wic/acc": 0.6, "rte/acc": 0.9}
        },
        "averages": {"Old 1B": 0.42},
    }
    record.write_text(json.dumps(results), encoding="utf-8")
    page = text_of(write_report([root]).read_text(encoding="utf-8"))
    assert "average 4 of 21 0.484 0.300" in page
