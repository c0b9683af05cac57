"""The filters: good text of every kind stays, each kind of bad text has its reason, and boilerplate lines go."""

from __future__ import annotations

import random
from itertools import product

import pytest

from chatbaker.recipe import Filters
from chatbaker.text.filters import Finding, findings, trim

KO = (
    "아침에 일어나 창문을 열었더니 마당에 눈이 소복이 쌓여 있었다. 할머니는 부엌에서 찌개를 끓이시며 오래된 "
    "노래를 부르셨다.\n버스가 고개를 넘자 멀리 바다가 보이기 시작했고 아이들은 소리를 질렀다. 그는 편지를 몇 "
    "번이나 읽고 나서야 서랍에 넣었다.\n올해 쌀 생산량은 지난해보다 조금 줄었다고 한다. 비가 와서 경기가 "
    "미뤄졌지만 관중은 아무도 자리를 떠나지 않았다.\n저녁이 되자 마을 사람들이 하나둘 모여 불을 피우고 밤늦도록 "
    "이야기를 나누었다."
)
EN = (
    "She opened the window in the morning and saw that the yard was covered with snow. He read the letter several "
    "times.\nWhen the bus had crossed the hill, the sea came into view and the children shouted. It rained, so "
    "the match was off.\nThe harvest was a little smaller than last year, and yet none of the people in the "
    "village complained about it."
)
CODE = """```python
def add(first, second):
    return first + second

for number in range(10):
    print(add(number, 1))
```
"""
NEWS = (
    "경찰은 온라인 카지노 사이트를 운영한 일당을 붙잡았다고 밝혔다. 이들은 카지노 게임과 바카라를 제공하며 돈을 "
    "받은 혐의를 받는다. 카지노 사이트는 처음에 무료 머니를 준다며 꾀지만 돈을 돌려주지 않는다. 카지노를 끊지 "
    "못한 사람은 상담을 받을 수 있다. 전문가들은 카지노 광고가 늘고 있다며 학교에서 도박 예방 교육을 해야 한다고 "
    "말했다. 카지노에 빠진 청소년이 적지 않기 때문이다."
)
SPAM = "카지노사이트 먹튀검증 완료, 바카라사이트 추천 가입코드 77, 안전놀이터 꽁머니 3만, 출장안마 후불"
GERMAN = (
    "Als sie am Morgen das Fenster öffnete, lag der Hof voller Schnee. Die Sitzung begann eine Stunde später als "
    "geplant, doch niemand verließ den Raum. Die Großmutter kochte in der Küche eine Suppe und summte dabei ein "
    "altes Lied."
)
CHINESE = "早上起来打开窗户,院子里已经积满了雪。奶奶一边在厨房里煮汤,一边哼着老歌。" * 3
KO_WORDS = (("강남", "부산", "제주"), ("맛집", "펜션", "학원"), (" 추천", " 가격", " 순위"))
EN_WORDS = (("cheap ", "best "), ("shoes ", "boots ", "bags "), ("online sale", "outlet shop", "discount review"))
KEYWORDS = {
    language: ", ".join(map("".join, product(*words))) for language, words in (("ko", KO_WORDS), ("en", EN_WORDS))
}
POEM = (
    "산 너머 남촌\n봄바람\n꽃향기\n강 건너 불빛\n\n그리운 이름 하나\n가슴에 묻은 밤\n\n새벽 종소리\n멀어지는 발자국\n\n"
    "돌담 밑 봉숭아\n손톱에 물든 여름\n\n어머니의 흰 고무신\n댓돌 위의 달빛\n\n돌아올 수 없는 강\n돌아보는 언덕\n\n"
    "나 여기 서서\n바람의 말을 듣네\n\n눈 내리는 저녁\n불 켜진 창 하나\n\n아직도 기다리네\n오지 않는 사람\n\n"
    "겨울 산 깊은 골\n얼음 밑 물소리\n\n먼 훗날 그때에\n잊었노라 말하리"
)
TALK = (
    "".join(f"A: {a}\nB: {b}\n" for a, b in (("어디세요?", "집이요."), ("왜요?", "그냥요."), ("저녁은요?", "아직요.")))
    * 2
)
TALK += (
    "A: 내일 여섯 시에 역 앞에서 만나요.\nB: 네, 그때 우산 가져갈게요.\nA: 비가 온대요?\nB: 그렇대요. 늦지 마세요.\n"
)


def values(text: str, language: str = "ko") -> dict[str, float]:
    return {finding.filter: finding.value for finding in findings(text, language, Filters())}


def reasons(text: str, language: str = "ko", **limits: float) -> list[str]:
    return [f.reason for f in findings(text, language, Filters.model_validate(limits)) if f.reason]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (KO, "ko"),
        (EN, "en"),
        (NEWS, "ko"),
        (POEM, "ko"),
        (TALK, "ko"),
        (
            f"덧셈 함수는 아래와 같습니다.\n{CODE}값을 바꾸어 가며 실행해 보세요. 결과는 숫자 열 개입니다.\n"
            + CODE.replace("add", "sum"),
            "ko",
        ),
        (f"The function is as follows.\n{CODE}Try it with other values, and see what you get.\n{EN}", "en"),
        (f"{KO} 😀😀 大韓民國 (Republic of Korea)", "ko"),
        (f"{EN} He said « Bonjour, mes amis, je suis ravi de vous voir ».", "en"),
        ("ㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋ", "ko"),
        ("배송도빠르고포장도꼼꼼해요다음에또살게요", "ko"),
        ("lol ok see u at 8, bring pizza!!!", "en"),
    ],
)
def test_good_text_of_every_kind_stays(text: str, language: str) -> None:
    assert reasons(text, language) == []


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("짧다", "ko", "too_short"),
        ("", "en", "too_short"),
        (EN, "ko", "wrong_language"),
        (KO, "en", "wrong_language"),
        (GERMAN, "en", "wrong_language"),
        (CHINESE, "ko", "wrong_language"),
        ("2024-01-01 12:00 | +82 02-000-0000 | 100%", "ko", "wrong_language"),
        (KO.replace(" ", " @#$^&*+="), "ko", "symbols"),
        ("\n".join(f"합계 {n * 7919} {n * 104729}" for n in range(100, 140)), "ko", "digits"),
        (KO.replace(" ", "") * 2, "ko", "word_length"),
        (KO + "ㅋ" * 300, "ko", "repeated_characters"),
        (KEYWORDS["ko"], "ko", "keywords"),
        (KEYWORDS["en"], "en", "keywords"),
        ("\n".join([KO.split("\n")[0]] * 9), "ko", "repeated_lines"),
        (f"{EN.split('.')[0]}. " * 9, "en", "repeated_phrases"),
        (SPAM, "ko", "spam"),
        ("Online casino, free spins, no deposit bonus! Sportsbook and online poker, casino games.", "en", "spam"),
        (
            "홈 | 로그인 | 회원가입 | 검색\n홈\n공지사항\n이용약관\nCopyright ⓒ 가나일보. All rights reserved.",
            "ko",
            "boilerplate",
        ),
        ("Home | News | Sports | Contact\n© 2024 Example Inc.\nWe use cookies to serve you.", "en", "boilerplate"),
    ],
)
def test_bad_text_has_its_reason(text: str, language: str, reason: str) -> None:
    assert reason in reasons(text, language)


def test_every_limit_of_the_recipe_is_a_filter_and_decides() -> None:
    known = {*values(KO, "ko"), *values(EN, "en")}
    assert known == set(Filters.model_fields) - {"judged_from"}
    for finding in [*findings(KO, "ko", Filters()), *findings(EN, "en", Filters())]:
        assert finding.limit == getattr(Filters(), finding.filter)
    assert reasons(KO, min_chars=len(KO) + 1) == ["too_short"]
    assert reasons(KO, grammar=2) == ["keywords"]
    assert reasons(KEYWORDS["ko"], grammar=0) == []


def test_shares_of_a_short_text_are_not_judged() -> None:
    assert set(values(KO[:199])) == {"boilerplate", "min_chars", "spam", "own_language"}
    assert "keywords" in reasons(KEYWORDS["ko"][:150], judged_from=100)


def test_the_shares_are_what_they_say() -> None:
    found = values("가나 12, !@ ㅋㅋㅋ\n" * 20)
    assert found["digits"] == pytest.approx(2 / 10)
    assert found["symbols"] == pytest.approx(1 / 10)  # the exclamation mark is an ordinary one
    assert found["repeated_characters"] == pytest.approx(2 / 10)
    assert found["word_length"] == pytest.approx(10 / 4)
    assert found["repeated_lines"] == pytest.approx(19 / 20)
    assert values("한글 English " * 20)["own_language"] == pytest.approx(2 / 9)
    assert values("나는 밥을 먹고 학교 앞\n" * 20)["grammar"] == pytest.approx(3 / 5)
    assert values("나는 밥을 먹었다. 학교 앞\n" * 20)["grammar"] == pytest.approx(3 / 5 + 7 / 10)
    assert values("the cat of night " * 20, "en")["function_words"] == pytest.approx(2 / 4)


def test_text_told_twice_is_half_repeated() -> None:
    assert values(KO)["repeated_phrases"] == 0
    assert values(f"{KO} {KO}")["repeated_phrases"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("mark", [".", "-", " ", "*", "ㅋ"])
def test_disguised_spam_is_spam(mark: str) -> None:
    assert values(mark.join(SPAM))["spam"] == pytest.approx(values(SPAM)["spam"], rel=0.01)


def test_one_term_however_often_is_no_spam() -> None:
    assert values("온라인카지노 " * 30)["spam"] == 0
    assert values("온라인 카지노, 바카라 사이트, 꽁머니를 조심하자. ")["spam"] == 0  # three terms


def test_nothing_falls_over() -> None:
    rng = random.Random(5)
    pieces = ["가", "ㅋ", "a", "\n", " ", "1", "😀", "漢", "\ud800", "…", "ⓒ", "홈", "기자", "İ", "\u200b"]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 60)))
        for language in ("ko", "en"):
            for finding in findings(text, language, Filters(judged_from=1)):
                assert isinstance(finding, Finding)
                assert finding.value >= 0


GONE = {
    "ko": [
        "ⓒ 가나다신문, 무단전재 및 재배포 금지",
        "<저작권자 © 가나다, 무단 전재 및 재배포 금지>",
        "본 기사의 무단 복제 및 배포를 금합니다.",
        "홍길동 기자 hong@example.com",
        "hong@example.com",
        "[홍길동 기자]",
        "(끝)",
        "사진=가나다신문 제공",
        "▲ 개막식 모습 (사진=가나다군청)",
        "입력 2023-04-05 10:11 | 수정 2023-04-05 11:12",
        "댓글 12 공감 34",
        "▶ 가나다 채널 구독하기",
        "[관련기사]\n☞ 첫째 기사\n☞ 둘째 기사",
        "홈\n로그인\n회원가입",
        "홈 | 가나다소식 | 로그인 | 검색",
        "- 이용약관\n- 개인정보처리방침\n- 사이트맵",
        "이 사이트는 더 나은 서비스를 위해 쿠키를 사용합니다.",
    ],
    "en": [
        "Copyright 2023 Example Post. All rights reserved.",
        "© 2023 Example Post",
        "Sign up for our daily newsletter.",
        "Follow us on Facebook and Twitter",
        "Related articles\n- One lake\n- Another lake",
        "Share this article",
        "ADVERTISEMENT",
        "We use cookies to make this site better.",
        "Home › News › Sports › Contact",
        "Your email address will not be published.",
    ],
}
STAYS = {
    "ko": [
        "저작권자는 저작물을 복제할 권리를 가진다.",
        "그는 무단 복제를 막는 법을 연구했다. 법은 금지하는 것이 많다.",
        "사진 속의 아이는 웃고 있었다.",
        "기자 회견은 오후 두 시에 열린다.",
        "관련 기사를 읽은 뒤에 답해 보세요.",
        "웹 서버는 쿠키를 써서 사용자를 알아본다.",
        "정치, 경제, 사회 전반에서 변화가 일어났다.",
        "홈",
        "두 개 주세요.",
        "▶ 전원을 켜고 5초 동안 기다린다.",
        "(가) 다음 글을 읽고 물음에 답하시오.",
        "입력 값은 0에서 100 사이의 정수이다.",
        "값을 대입한다. [x] = 3",
    ],
    "en": [
        "Copyright law protects the author for seventy years.",
        "Web servers use cookies to tell one visitor from another.",
        "Home is where the heart is.",
        "Read more books, he told the children.",
        "Share the bread with your brother.",
        "Search",
        "Leave a little sugar for the tea.",
        "(c) the third of the conditions above",
    ],
}


@pytest.mark.parametrize(("language", "line"), [(language, line) for language, lines in GONE.items() for line in lines])
def test_boilerplate_goes_and_its_neighbours_stay(language: str, line: str) -> None:
    before, after = (KO if language == "ko" else EN).split("\n")[:2]
    assert trim(f"{before}\n{line}\n{after}", language) == f"{before}\n{after}"
    assert trim(f"{before}\n\n{line}\n\n{after}\n{line}", language) == f"{before}\n\n{after}"


@pytest.mark.parametrize(
    ("language", "line"), [(language, line) for language, lines in STAYS.items() for line in lines]
)
def test_a_line_that_only_looks_like_it_stays(language: str, line: str) -> None:
    before, after = (KO if language == "ko" else EN).split("\n")[:2]
    text = f"{before}\n{line}\n{after}"
    assert trim(text, language) is text


def test_a_dateline_goes_without_its_sentence() -> None:
    sentence = "새 다리가 어제 열렸다."
    for dateline in ("[서울=가나다뉴스] 홍길동 기자 = ", "(부산=가나다통신) ", "[가나다일보 홍길동 기자] "):
        assert trim(f"제목\n{dateline}{sentence}", "ko") == f"제목\n{sentence}"


def test_a_byline_at_the_end_of_a_paragraph_does_not_take_it_along() -> None:
    text = f"{KO.split(chr(10))[0]} 홍길동 기자 hong@example.com"
    assert trim(text, "ko") == text


def test_trimming_takes_linear_time() -> None:
    """Each of these would take for ever if the pattern could go back over the items in more than one way."""
    for text in (
        "홈\n가나\n" * 3000 + "끝.",
        "홈 | 가나 | " * 3000,
        "home\nabc\n" * 3000,
        "홈" + "\n" * 20_000 + "끝.",
    ):
        assert len(trim(text, "ko")) <= len(text)


def test_what_is_left_is_judged_once_trimmed() -> None:
    notices = "\n".join(["홈 | 로그인 | 회원가입 | 검색 | 공지사항"] * 4)
    assert reasons(f"{notices}\n{KO}") == []
    assert values(f"{notices}\n{KO}")["min_chars"] == len(KO)
    assert reasons(f"{notices}\n새 다리가 어제 열렸다.", min_chars=5) == ["boilerplate"]
