"""Every format that people have, by a sample of our own: recognised, mended, refused by file and line, counted."""

import gzip
import json
import unicodedata

import pytest
import zstandard

from chatbaker import jsonl, made
from chatbaker.errors import ChatBakerError
from chatbaker.recipe import SftSource, parse
from chatbaker.tokens.dialog import CHATML
from chatbaker.tokens.formats import read

TALK = [
    {"role": "user", "content": "김치찌개는 어떻게 끓여?"},
    {"role": "assistant", "content": "묵은 김치를 볶다가 물을 붓고 끓이면 돼요. 🍲"},
    {"role": "user", "content": "And in English?"},
    {"role": "assistant", "content": "Fry old kimchi, add water, and let it simmer."},
]
ONE = TALK[:2]
SYSTEM = {"role": "system", "content": "존댓말로 답하세요."}
ASKED, SAID = (turn["content"] for turn in ONE)


def message(key, parent, role, text, **facts):
    return {"message_id": key, "parent_id": parent, "role": role, "text": text, "deleted": False, "lang": "ko"} | facts


FLAT = [
    message("d", "b", "prompter", "And in English?"),
    message("r", None, "prompter", ASKED, tree_state="ready_for_export"),
    message("a", "r", "assistant", "몰라요.", rank=1),
    message("b", "r", "assistant", SAID, rank=0),
    message("x", "r", "assistant", "지워진 답", rank=0, deleted=True),
    message("c", "b", "prompter", "고마워!"),
    message("e", "d", "assistant", TALK[3]["content"], rank=None),
]


def nested(key="r"):
    own = next(dict(each) for each in FLAT if each["message_id"] == key)
    own["replies"] = [nested(each["message_id"]) for each in FLAT if each["parent_id"] == key]
    return own


TREE = {"message_tree_id": "r", "tree_state": "ready_for_export", "prompt": nested()}
PARTS = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]
SHARED = [
    {"from": who, "value": turn["content"]} for who, turn in zip(("human", "gpt", "user", "Bard"), TALK, strict=True)
]
TEXT = {"question": "무엇에 대한 글이야?", "context": "김치는 배추를 절여 만든다."}

GOLDEN = {
    "messages": ([{"messages": [SYSTEM, *TALK], "lang": "ko"}], [SYSTEM, *TALK]),
    "messages in parts": ([{"messages": PARTS}], TALK),
    "developer": ([{"messages": [SYSTEM | {"role": "developer"}, *TALK]}], [SYSTEM, *TALK]),
    "ShareGPT": ([{"id": "a_0", "conversations": SHARED}], TALK),
    "ShareGPT, of the arena": ([{"conversation_id": "1", "conversation": TALK}], TALK),
    "Alpaca": ([{"instruction": ASKED, "input": "", "output": SAID}], ONE),
    "Alpaca with input": (
        [
            {
                "instruction": "번역해 줘.",
                "input": "Hello",
                "output": "안녕하세요",
                "prompt": "지시: 번역해 줘.\n\nHello",
            }
        ],
        [{"role": "user", "content": "번역해 줘.\n\nHello"}, {"role": "assistant", "content": "안녕하세요"}],
    ),
    "Alpaca without input": ([{"instruction": ASKED, "output": SAID, "url": "1"}], ONE),
    "Alpaca with history": (
        [{"instruction": TALK[2]["content"], "output": TALK[3]["content"], "history": [[ASKED, SAID]]}],
        TALK,
    ),
    "prompt/completion": ([{"prompt": ASKED, "completion": SAID}], ONE),
    "prompt/response": ([{"prompt": ASKED, "response": SAID}], ONE),
    "question/answer": (
        [TEXT | {"answer": "김치"}],
        [{"role": "user", "content": "\n\n".join(TEXT.values())}, {"role": "assistant", "content": "김치"}],
    ),
    "question/response": ([{"system_prompt": SYSTEM["content"], "question": ASKED, "response": SAID}], [SYSTEM, *ONE]),
    "OpenAssistant": (FLAT, TALK),
    "OpenAssistant, nested": ([TREE], TALK),
}


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def write(tmp_path):
    """Write a file, and give what a source that names it reads: the conversations with their places."""

    def write(content, name="talk.jsonl", **knobs):
        data = content if isinstance(content, bytes) else lines(content)
        (tmp_path / name).write_bytes(data)
        return list(read(SftSource(path=name, **knobs), tmp_path, 0))

    return write


@pytest.mark.parametrize("name", GOLDEN)
def test_a_format_is_recognised_and_read(write, capsys, name):
    rows, expected = GOLDEN[name]
    ((where, messages),) = write(rows)
    assert messages == expected
    assert where.endswith("talk.jsonl:2" if rows is FLAT else "talk.jsonl:1")
    turns = len(expected)
    line = capsys.readouterr().err
    assert line.endswith(f"talk.jsonl: {turns} turns, 1 conversations ({name.split(',')[0].split(' ')[0]})\n") or (
        name == "developer" and f"{turns} turns, 1 conversations (messages)" in line
    )


PAIRS = [{"prompt": f'{n}번 질문, "따옴표"\n둘째 줄', "completion": f"{n}번 답이에요."} for n in range(3)]


def as_csv(encoding):
    rows = ["prompt,completion\r\n"]
    rows += [f'"{row["prompt"].replace(chr(34), chr(34) * 2)}",{row["completion"]}\r\n' for row in PAIRS]
    return "".join(rows).encode(encoding)


STORED = {
    "a.jsonl": lines(PAIRS),
    "a.json": json.dumps(PAIRS, ensure_ascii=False, indent=1).encode(),
    "lines.json": lines(PAIRS),
    "bom.json": json.dumps(PAIRS, ensure_ascii=False).encode("utf-8-sig"),
    "cp949.json": json.dumps(PAIRS, ensure_ascii=False).encode("cp949"),
    "a.json.gz": gzip.compress(json.dumps(PAIRS).encode()),
    "a.jsonl.zst": zstandard.compress(lines(PAIRS)),
    "a.csv": as_csv("utf-8"),
    "bom.csv": as_csv("utf-8-sig"),
    "cp949.CSV": as_csv("cp949"),
}


@pytest.mark.parametrize("name", STORED)
def test_records_are_found_however_they_are_stored(write, name):
    found = write(STORED[name], name)
    assert [[turn["content"] for turn in messages] for _, messages in found] == [list(row.values()) for row in PAIRS]
    assert [where.rpartition(":")[2] for where, _ in found] == ["1", "2", "3"]


def test_parquet_with_nested_columns(tmp_path, write):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist([{"conversations": SHARED}] * 300)
    path = tmp_path / "made.parquet"
    parquet.write_table(table, path)
    data = path.read_bytes()
    found = write(data, "a.parquet")
    assert [messages for _, messages in found] == [TALK] * 300
    assert found[-1][0].endswith("a.parquet:300")
    with pytest.raises(ChatBakerError, match=r"a\.parquet: damaged, or not parquet"):
        write(data[:-20], "a.parquet")


def test_files_of_several_formats_make_one_source(tmp_path, write):
    write(GOLDEN["ShareGPT"][0] * 2, "a.jsonl")
    write(json.dumps(GOLDEN["Alpaca"][0]).encode(), "b.json")
    write(FLAT, "c.jsonl")
    found = list(read(SftSource(path="*.json*"), tmp_path, 0))
    assert [messages for _, messages in found] == [TALK, TALK, ONE, TALK]
    assert list(read(SftSource(path="*.json*", limit=3), tmp_path, 0)) == found[:3]


def test_the_hub_is_asked_for_files_of_a_data_set(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"messages": TALK}]))
    asked = []
    monkeypatch.setattr(jsonl, "find_on_hub", lambda pattern, where: asked.append(pattern) or [str(path)])
    assert [messages for _, messages in read(SftSource(path="hub:one/set/*.jsonl"), tmp_path, 0)] == [TALK]
    assert asked == ["datasets/one/set/*.jsonl"]


def test_what_comes_after_the_limit_is_not_looked_at(write):
    assert len(write([{"messages": TALK}, {"messages": []}], limit=1)) == 1


# ---- mending ----------------------------------------------------------------------------------------------------


def say(*words):
    """u:words of the user, a:... of the assistant, s:... of the system, as ShareGPT has them."""
    who = {"u": "human", "a": "gpt", "s": "system", "t": "tool"}
    return {"conversations": [{"from": who[word[0]], "value": word[2:]} for word in words]}


@pytest.mark.parametrize(
    ("given", "kept", "note"),
    [
        (("u:가", "a:나", "u:다"), "u:가 a:나", None),
        (("a:어서 와요", "u:가", "a:나"), "u:가 a:나", "1 opening answers left out"),
        (("s:규칙", "a:하나", "a:둘", "u:가", "a:나"), "s:규칙 u:가 a:나", "2 opening answers left out"),
        (("u:가", "u:나", "a:다", "a:라"), "u:가\n나 a:다\n라", "2 turns joined"),
        (("s:하나", "s:둘", "u:가", "a:나"), "s:하나\n둘 u:가 a:나", "1 turns joined"),
        (("s: ", "u:가", "a:나"), "u:가 a:나", None),
        (("u:가", "a:나", "u:다", "a: \n"), "u:가 a:나", "1 cut at an empty turn"),
        (("u:가", "a:나", "u:", "a:답"), "u:가 a:나", "1 cut at an empty turn"),
    ],
)
def test_what_can_be_mended_is_mended_and_counted(write, capsys, given, kept, note):
    ((_, messages),) = write([say(*given)])
    assert " ".join(f"{turn['role'][0]}:{turn['content']}" for turn in messages) == kept
    assert (note or "1 conversations") in capsys.readouterr().err


def test_text_is_nfc_and_keeps_its_emoji(write):
    decomposed = unicodedata.normalize("NFD", "한국어 👩‍🍳")
    ((_, messages),) = write([say(f"u:{decomposed}", f"a: {decomposed}\n")])
    assert [turn["content"] for turn in messages] == ["한국어 👩‍🍳"] * 2


GOOD = say("u:가", "a:나")
BAD = [
    ({"conversations": []}, "no assistant turn"),
    (say("u:가"), "no assistant turn"),
    ({"conversations": [{}, {"value": "가"}]}, "message 1: expected"),
    ({"conversations": [{"value": "가"}]}, "message 1: unknown role None"),
    (say("u:가", "a:"), "no assistant turn"),
    (say("u:가", "t:42", "a:나"), r"message 2: unknown role 'tool'"),
    (say("u:가", "a:나", "s:규칙", "u:다", "a:라"), "message 3: a system message must come first"),
    ({"conversations": ["안녕"]}, "message 1: expected"),
    ({"conversations": [{"from": "human", "value": None}]}, "message 1: expected"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 1: expected"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message 1: expected"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": {"value": "x"}}]}]}, "message 1: expected"),
    ({"messages": "[" * 100_000}, r"no known format \(the keys are: messages\)"),
    ({"conversations": None}, r"no known format \(the keys are: conversations\)"),
    ({"instruction": "가", "output": ""}, "no assistant turn"),
    ({"instruction": "가", "output": 3}, "message 2: expected"),
    ({"instruction": "두 배로", "input": 21, "output": "42"}, "its input is not text"),
    ({"question": "가?", "context": {"title": ["나"]}, "answer": "다"}, "its context is not text"),
    (
        {"instruction": "답하시오.", "question": "인구는?", "answer": "천만"},
        "it has two questions, instruction and question",
    ),
    ({"question": "수도는?", "A": "부산", "B": "서울", "gold": "B"}, "A and B are choices"),
    ({"messages": [ONE[0], ONE[1] | {"weight": 0}, ONE[1]]}, "two answers in a row, one of them of weight 0"),
    ({"messages": [ONE[0], ONE[1] | {"weight": 0.5}]}, "weight 0.5 is neither 0 nor 1"),
    ({"messages": [ONE[0], ONE[1] | {"weight": 0}]}, "no assistant turn of weight 1"),
    ({"text": "x", "replies": 5}, "its replies are not a tree"),
    ({"instruction": "가", "output": "나", "history": [{"user": "다", "bot": "라"}]}, "its history is not a list of"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_records_are_refused_with_file_line_and_reason(write, row, reason):
    with pytest.raises(ChatBakerError, match=rf"talk\.jsonl:2: {reason}.*(strict = false|Known: )"):
        write([GOOD, row])


def test_bad_records_are_counted_where_the_source_allows_it(write, capsys):
    broken = b'\xb0\xa1{"messages"\n{"conversations": \n'
    found = write(lines([GOOD, *[row for row, _ in BAD], GOOD]) + broken, strict=False)
    assert [where.rpartition(":")[2] for where, _ in found] == ["1", str(len(BAD) + 2)]
    report = capsys.readouterr().err.splitlines()
    for part in ("2 conversations (ShareGPT)", "4 skipped: no assistant turn", "1 skipped: not UTF-8", "not JSON"):
        assert part in report[-1], report[-1]
    assert sum("talk.jsonl:2: no assistant turn" in line for line in report[:-1]) == 1
    assert not any("talk.jsonl:3:" in line for line in report)


def test_a_file_that_begins_with_a_bad_record_is_read_on(write, capsys):
    assert len(write([{"text": "x", "replies": 5}, GOOD], strict=False)) == 1
    assert "1 skipped: its replies are not a tree" in capsys.readouterr().err


def test_a_system_prompt_beside_the_turns_is_kept(write):
    own = {"role": "system", "content": "Be long."}
    talk = [{"role": "user", "content": "가"}, {"role": "assistant", "content": "나"}]
    rows = [{"system": "Be brief.", "messages": talk}, {"system": "Be brief.", "messages": [own, *talk]}]
    assert [messages[0]["content"] for _, messages in write(rows)] == ["Be brief.", "Be long."]


def test_a_csv_file_is_read_on_after_bad_rows(write, capsys):
    rows = b'prompt,completion\n"a"b,x\nc,d\ne,f,g\nh,"i\nj"\n'
    found = write(rows, "a.csv", strict=False)
    assert [(where[-1], messages[1]["content"]) for where, messages in found] == [("2", "d"), ("4", "i\nj")]
    assert "1 skipped: damaged, or not csv" in (report := capsys.readouterr().err)
    assert "1 skipped: more cells than the header" in report


def test_turns_may_be_json_in_a_cell(write):
    cell = json.dumps(TALK, ensure_ascii=False).replace('"', '""')
    ((_, messages),) = write(f'id,messages\n1,"{cell}"\n'.encode(), "a.csv")
    assert messages == TALK


def test_an_answer_of_weight_0_is_read_and_not_trained_on(write, capsys):
    without = TALK[1] | {"weight": 0}
    ((_, messages),) = write([{"messages": [SYSTEM | {"content": ""}, TALK[0], without, *TALK[2:]]}])
    assert messages == [TALK[0], TALK[1] | {"weight": "0"}, *TALK[2:]]
    assert [part.text for part in CHATML.segments(messages) if part.trained] == [TALK[3]["content"], "<|im_end|>"]
    assert "1 answers without loss" in capsys.readouterr().err
    ((_, messages),) = write([{"messages": [*ONE, TALK[2], TALK[3] | {"weight": 0.0}]}])
    assert messages == ONE


def test_a_prompt_and_its_completion_may_be_messages(write):
    row = {"prompt": [{"role": "user", "content": "가"}], "completion": [{"role": "assistant", "content": "나"}]}
    ((_, messages), (_, same)) = write([row, row | {"completion": "나"}])
    assert messages == same == [*row["prompt"], *row["completion"]]


@pytest.mark.parametrize("strict", [True, False])
def test_an_unknown_format_names_its_keys_and_the_known_ones(write, strict):
    with pytest.raises(ChatBakerError, match=r"a\.json:1: .*keys are: title, body\).*Known: .*conversations"):
        write(b'[{"title": "x", "body": "y"}]', "a.json", strict=strict)
    with pytest.raises(ChatBakerError, match="keys are: none"):
        write(b"[[1, 2]]", "a.json", strict=strict)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.json", b'[{"prompt": "x",]', r"a\.json: damaged, or not json: .*line 1 column 17"),
        ("a.json", b"[" * 100_000, r"a\.json: damaged, or not json"),
        ("a.json", b"[\xff\xfe\x00]", r"a\.json: damaged, or not json"),
        ("a.csv", b"\xff\xff\xff", r"a\.csv: damaged, or not csv"),
        ("a.csv", b'prompt,completion\nx,y\n"x,y', r"a\.csv:2: damaged, or not csv"),
        ("a.parquet", b"PAR1", r"a\.parquet: damaged, or not parquet"),
        ("a.jsonl", b"\xb0\xa1\n", r"a\.jsonl:1: not UTF-8.*iconv -f cp949 -t utf-8 a\.jsonl"),
        ("a.tsv", b"prompt\tcompletion\n", r"a\.tsv:1: not JSON.*save an array as \.json and a table as \.csv"),
        ("a.csv", b"prompt,completion\nx,y, z\n", r"a\.csv:1: more cells than the header"),
        ("a.jsonl.gz", gzip.compress(lines([GOOD] * 99))[:-9], r"a\.jsonl\.gz:\d+: the gzip data is cut short"),
    ],
)
def test_damaged_files_are_named(write, capsys, name, data, reason):
    with pytest.raises(ChatBakerError, match=reason):
        write(data, name)
    write(data, name, strict=False)
    assert "skipped" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_packed_file_of_no_bytes_was_not_copied(write, name):
    with pytest.raises(ChatBakerError, match="data is cut short"):
        write(b"", name)


def test_empty_files_hold_nothing(write, capsys):
    for name in ("a.jsonl", "a.json", "a.csv"):
        assert write(b"", name) == []
        assert capsys.readouterr().err.endswith(f"{name}: empty\n")


# ---- trees and languages ----------------------------------------------------------------------------------------


def test_a_tree_gives_its_best_path_whatever_the_order(write):
    for turn in range(len(FLAT)):
        assert [messages for _, messages in write(FLAT[turn:] + FLAT[:turn])] == [TALK]


def test_trees_that_are_not_finished_are_left_out(write, capsys):
    other = [message("z", None, "prompter", "?", tree_state="aborted_low_grade"), message("y", "z", "assistant", "!")]
    assert len(write([*FLAT, *other])) == 1
    assert "1 left out (aborted_low_grade)" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [FLAT, [TREE]])
def test_only_wanted_languages_are_read(write, capsys, rows):
    assert len(write(rows, languages=["ko", "en"])) == 1
    assert write(rows, languages=["en"]) == []
    assert "1 left out (ko)" in capsys.readouterr().err


def test_broken_trees_end_the_reading_or_are_counted(write, capsys):
    orphan = message("o", "nobody", "assistant", "…")
    with pytest.raises(ChatBakerError, match=r"talk\.jsonl:8: its parent_id is not in the file"):
        write([*FLAT, orphan])
    circle = [
        message("p", "q", "prompter", "a"),
        message("q", "p", "assistant", "b"),
        message("s", "s", "prompter", "c"),
    ]
    found = write([*FLAT, orphan, *circle, message("r", "e", "prompter", "a second r")], strict=False)
    assert found == []  # r hangs below itself
    assert len(write([*FLAT, orphan, *circle], strict=False)) == 1
    assert "1 skipped: its parent_id is not in the file" in capsys.readouterr().err


# ---- what was there before --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["ko:small", "en:small"])
def test_made_conversations_pass_unchanged_and_in_order(world):
    """Their order decides whether a bake in progress can go on."""
    found = list(read(SftSource(path=f"made:{world}", limit=300), None, 1234))
    assert [messages for _, messages in found] == list(made.conversations(1234, 300, world))
    assert [where for where, _ in found] == [f"made:{world}:{number}" for number in range(1, 301)]


def test_made_conversations_need_a_world_and_a_limit():
    with pytest.raises(ChatBakerError, match="needs a limit"):
        list(read(SftSource(path="made:ko"), None, 0))
    with pytest.raises(ChatBakerError, match=r"no 'made:fr'.*Known: made:ko"):
        list(read(SftSource(path="made:fr", limit=1), None, 0))


def test_a_recipe_saved_before_weights_still_opens():
    data = {"name": "x", "sft": {"sources": [{"path": "a", "repeat": 2}, {"path": "b", "weight": 0.5}]}}
    recipe = parse(data, "x")
    assert [source.weight for source in recipe.sft.sources] == [2, 0.5]
    assert "repeat" not in recipe.model_dump()["sft"]["sources"][0]
    with pytest.raises(ChatBakerError, match=r"sft\.sources\.0\.weight"):
        parse({"name": "x", "sft": {"sources": [{"path": "a", "weight": 0}]}}, "x")
