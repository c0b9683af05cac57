"""The project's own data: forms that come out right, answers that keep their register, facts that agree."""

from __future__ import annotations

import inspect
import json
import random
import re
import unicodedata
from collections import Counter

import pytest

from chatbaker import made
from chatbaker.made import drills, forms

LANGS = ("ko", "en")
SAMPLE = {lang: list(made.conversations(3, 4000, lang)) for lang in LANGS}


def fields(template):
    """The names of the fields that a template uses."""
    return set(re.findall(r"\{(\w+)", template))


def turns(lang):
    """Every (ask, answer) group of the talk file and of the fact tables, with the name it comes from."""
    for topic in made.topics(lang):
        yield from ((topic.name, turn) for turn in topic.turns)
    for file in ("facts.toml", "drills.toml"):
        for fact in made.kinds(file, lang):
            yield from ((fact.name, turn) for topic in fact.topics for turn in topic.turns)


def pairs(lang):
    """(question, answer) of every exchange in the sample."""
    for messages in SAMPLE[lang]:
        talk = [message["content"] for message in messages if message["role"] != "system"]
        yield from zip(talk[::2], talk[1::2], strict=True)


@pytest.mark.parametrize(
    ("word", "kind", "wanted"),
    [
        *[
            ("사과", "은", "는"),
            ("물", "은", "은"),
            ("물", "으로", "로"),
            ("집", "으로", "으로"),
            ("버스", "으로", "로"),
        ],
        *[("3", "은", "은"), ("4", "은", "는"), ("10", "을", "을"), ("100", "이", "이"), ("0", "과", "과")],
        *[
            ("7", "으로", "로"),
            ("6", "으로", "으로"),
            ("2", "과", "와"),
            ("지훈", "이야", "이야"),
            ("민수", "이야", "야"),
        ],
        *[("CPU", "은", "는"), ("DNA", "이", "가"), ("RAM", "을", "을"), ("URL", "으로", "로"), ("민수", "이야", "야")],
        *[
            ("밥 먹었어?", "이라고", "라고"),
            ("'달'", "이다", "이다"),
            ("나무", "이다", "다"),
            ("책", "이에요", "이에요"),
        ],
    ],
)
def test_particle(word, kind, wanted):
    assert forms.particle(word, kind) == wanted


def test_particle_refuses_a_word_whose_reading_is_unknown():
    with pytest.raises(ValueError, match="apple"):
        forms.particle("apple", "은")


def test_fill():
    assert forms.fill("{a:과} {b:'은} {c}", {"a": "물", "b": "불", "c": "말"}) == "물과 '불'은 말"
    assert forms.fill("{x:a} and {y:a}", {"x": "owl", "y": "cat"}) == "An owl and a cat"
    with pytest.raises(KeyError):
        forms.fill("{missing}", {})


def test_number_words():
    assert [forms.number_word(n, "ko") for n in (0, 11, 20, 99, 100)] == ["영", "십일", "이십", "구십구", "백"]
    assert [forms.number_word(n, "en") for n in (0, 13, 42, 100)] == ["zero", "thirteen", "forty-two", "one hundred"]
    assert [forms.native_word(n) for n in (1, 10, 20, 23, 99)] == ["하나", "열", "스물", "스물셋", "아흔아홉"]


@pytest.mark.parametrize("lang", LANGS)
@pytest.mark.parametrize("make", [made.conversations, made.documents])
def test_same_seed_same_items(make, lang):
    first = list(make(5, 200, lang))
    assert first == list(make(5, 200, lang))
    assert first[:50] == list(make(5, 50, lang)), "an item does not depend on how many are asked for"
    assert first != list(make(6, 200, lang))


@pytest.mark.parametrize("lang", LANGS)
def test_enough_unlike_items(lang):
    documents = set(made.documents(1, 4000, lang))
    assert len(documents) >= 3500
    assert len({json.dumps(messages) for messages in SAMPLE[lang]}) >= 3000
    assert all(4 <= len(document) <= 2500 for document in documents)


@pytest.mark.parametrize("lang", LANGS)
def test_conversations_are_well_formed(lang):
    systems = 0
    for messages in SAMPLE[lang]:
        roles = [message["role"] for message in messages]
        if roles[0] == "system":
            systems += 1
            roles = roles[1:]
        assert roles
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        for message in messages:
            text = message["content"]
            assert text
            assert text == text.strip() == unicodedata.normalize("NFC", text)
            assert not re.search(r"[{}]|  ", text), text
            assert len(text) <= (130 if lang == "ko" else 240), text
    assert 0.03 < systems / len(SAMPLE[lang]) < 0.1


@pytest.mark.parametrize("lang", LANGS)
def test_answer_speaks_the_language_of_the_question(lang):
    """Turns in the other language come up, and their answers are in it too."""
    other = 0
    for question, answer in pairs(lang):
        hangul = re.search("[가-힣ㄱ-ㅎㅏ-ㅣ]", question)
        if hangul and not re.search("[A-Za-z]", question) and "말" not in question:
            assert not re.fullmatch(r"[A-Za-z ,.'!?]{12,}", answer), (question, answer)
        if not hangul and re.search("[A-Za-z]{3}", question) and "orean" not in question:
            assert re.search("[A-Za-z]", answer) or not re.search("[가-힣]", answer), (question, answer)
        other += bool(hangul) != (lang == "ko")
    assert other > 20


@pytest.mark.parametrize("lang", LANGS)
def test_documents_are_clean(lang):
    for document in made.documents(2, 3000, lang):
        assert not re.search(r"[{}]|  ", document), document
        assert document == unicodedata.normalize("NFC", document).strip()


ENDING = re.compile(r"(요|죠|니다|니까|시다|세요)[.!?~]*$")
NEUTRAL = {"네", "안녕하세요", "아니요", "파이팅"}  # said in any polite register


def sentences(answer):
    plain = re.sub(r"'[^']*'", "것", answer)
    return [part.strip() for part in re.findall(r"[^.!?]+[.!?]*", plain) if part.strip(" .!?")]


def test_korean_answers_are_polite_and_keep_one_register():
    wrong = []
    for name, turn in turns("ko"):
        if name == "echo":
            continue
        for answer in turn.answer:
            answer = re.sub(r"\{\w+:이에요\}", "것이에요", re.sub(r"\{taste\}", "달아요", answer))
            answer = re.sub(r"\{use\}\.$", "봅니다.", answer) if name == "body" else answer
            styles = set()
            for sentence in sentences(answer.replace(", {name} 님", "")):
                if sentence.rstrip(".!?") in NEUTRAL:
                    continue
                if not ENDING.search(sentence):
                    wrong.append((name, answer))
                styles.add("합쇼" if re.search(r"(니다|니까|시다)[.!?]*$", sentence) else "해요")
            if len(styles) > 1:
                wrong.append((name, answer))
    assert not wrong


@pytest.mark.parametrize("lang", LANGS)
def test_talk_is_rich_enough(lang):
    topics = made.topics(lang)
    assert len({topic.name for topic in topics}) == len(topics) >= 350
    for topic in topics:
        main = topic.turns[0]
        assert 5 <= len(main.ask) <= 20, topic.name
        assert (2 if len(topic.turns) == 1 else 1) <= len(main.answer) <= 8, topic.name
        assert len(topic.turns) <= 4, topic.name
        for turn in topic.turns:
            assert len(turn.ask) >= 2, topic.name
            assert turn.answer, topic.name
            for texts in (turn.ask, turn.answer):
                assert len(set(texts)) == len(texts), topic.name
            assert all(len(answer) <= (120 if lang == "ko" else 220) for answer in turn.answer), topic.name


@pytest.mark.parametrize("lang", LANGS)
def test_one_question_has_one_topic(lang):
    """The same words never get answers from two unlike topics (a follow-up may repeat a question)."""
    bare = [{re.sub(r"[ .?!~]", "", ask).lower() for ask in topic.turns[0].ask} for topic in made.topics(lang)]
    assert [ask for ask, count in Counter(ask for asks in bare for ask in asks if ask).items() if count > 1] == []


def test_tables_use_only_fields_they_have():
    for lang in LANGS:
        for fact in made.kinds("facts.toml", lang):
            given = set(fact.rows[0])
            assert fact.key in given or fact.key is None
            turns = [turn for topic in fact.topics for turn in topic.turns]
            templates = [*fact.say, *(text for turn in turns for text in turn.ask + turn.answer)]
            for row in fact.rows:
                for template in templates:
                    assert fields(template) <= given
                    forms.fill(template, row)
            assert len(set(fact.say)) == len(fact.say) != 1, fact.name


def test_drills_and_their_makers_match():
    found = [(fact, lang) for lang in LANGS for fact in made.kinds("drills.toml", lang)]
    cases = re.findall(r'case "(\w+)"', inspect.getsource(drills.compute))
    assert sorted(cases) == sorted({fact.name for fact, _ in found if not fact.draw})
    for fact, lang in found:
        turns = [turn for topic in fact.topics for turn in topic.turns]
        templates = [*fact.say, *(text for turn in turns for text in turn.ask + turn.answer)]
        assert set().union(*map(fields, templates)) <= set(fact.row(random.Random(0), lang)), fact.name


def test_facts_agree():
    """One question has one answer; both languages hold the same rows; the amounts promised are there."""
    for lang in LANGS:
        facts = made.facts(lang)
        assert len(facts) >= 250
        answers = {}
        for question, keyword in facts:
            assert keyword and keyword in question or answers.setdefault(question, keyword) == keyword, question
    assert len(made.kinds("facts.toml", "ko")) >= 20
    shared = {fact.name: len(fact.rows) for fact in made.kinds("facts.toml", "ko")}
    for fact in made.kinds("facts.toml", "en"):
        assert shared.get(fact.name, len(fact.rows)) == len(fact.rows), fact.name


@pytest.mark.parametrize("lang", LANGS)
def test_facts_are_taught(lang):
    """Answers to the question of facts() contain its keyword, in every wording."""
    for fact in made.kinds("facts.toml", lang):
        if fact.key:
            main = fact.topics[0].turns[0]
            for answer in main.answer:
                assert fact.key in fields(answer), (fact.name, answer)


NUMBER = r"\b(\d{1,2})\b"
SUMS = [
    (rf"^{NUMBER} ?(?:더하기|\+|plus) ?{NUMBER}", lambda a, b: a + b),
    (rf"^{NUMBER} ?(?:빼기|-|minus) ?{NUMBER}", lambda a, b: a - b),
    (rf"^{NUMBER} ?(?:곱하기|x|×|\*|times) ?{NUMBER}", lambda a, b: a * b),
    (rf"^(?:what is|what's) {NUMBER} (?:plus|\+) {NUMBER}", lambda a, b: a + b),
    (rf"^(?:what is|what's) {NUMBER} (?:minus|-) {NUMBER}", lambda a, b: a - b),
    (rf"^(?:what is|what's) {NUMBER} times {NUMBER}", lambda a, b: a * b),
]


@pytest.mark.parametrize("lang", LANGS)
def test_sums_are_exact(lang):
    checked = 0
    for messages in made.conversations(9, 12000, lang):
        for message, reply in zip(messages, messages[1:], strict=False):
            if message["role"] != "user":
                continue
            for pattern, result in SUMS:
                if match := re.match(pattern, message["content"].lower()):
                    want = str(result(int(match[1]), int(match[2])))
                    assert re.findall(r"\d+", reply["content"])[-1:] == [want], (message, reply)
                    checked += 1
    assert checked > 100


def test_recall_uses_what_was_said():
    """Asked back for a name, the answer holds the name given one turn before."""
    seen = 0
    for messages in SAMPLE["ko"]:
        talk = [message["content"] for message in messages if message["role"] != "system"]
        for i in range(0, len(talk) - 3, 2):
            if (given := re.match(r"(?:내|제) 이름은 (\S+?)(?:이야|야|이에요|예요)[.!~]?$", talk[i])) and re.search(
                r"(내|제) 이름", talk[i + 2]
            ):
                assert given[1] in talk[i + 3], talk
                seen += 1
    assert seen > 3


@pytest.mark.parametrize("lang", made.LANGS)
def test_the_small_world_is_a_part_of_the_whole(lang):
    small, whole = made.facts(f"{lang}:small"), made.facts(lang)
    assert 50 <= len(small) < len(whole) / 4
    assert set(small) <= set(whole)
    assert made.topics(f"{lang}:small")
    asked = {m[0]["content"] for m in made.conversations(1, 400, f"{lang}:small")}
    assert len(asked) > 100
    assert len(set(made.documents(1, 500, f"{lang}:small"))) > 400
