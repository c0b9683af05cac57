"""Reading Korean: which encoding bytes are in, mojibake undone or given up, and text written in one way."""

from __future__ import annotations

import random
import time
import unicodedata
from collections.abc import Callable

import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.text.korean import decode, normalize, repair

KO = "오늘은 아침부터 비가 내려서 우산을 들고 나갔습니다. 길가의 나무들은 벌써 붉게 물들었고, 모두 바쁘게 걸었다.\n"
UHC = "똠방각하 펲시콜라를 마시고 햏햏 웃었다. 그 사람은 정말 이상한 사람이었지만 나는 그를 좋아했다.\n"  # no EUC-KR
EN = "It was raining this morning, so she took her umbrella and walked to the station.\n"
FR = "L’été dernier, « élève » à Noël… ça coûte 5 €, n’est-ce pas ? «\xa0né\xa0» — naïve, œuvre, forêt\xa0»\n"
DE = "Die Straße führt über „Spaß“ nach Ägypten: Ä…Ö…Ü… Öl, Füße, Größe.\n"
PT = "MAÇÃ” e ÂNGULO, você…” não, irmã’ são.\n"
JA = "吾が家の猫は、毎朝七時に起きてニャーと鳴く。ﾊﾝｶｸも少し。\n"
ZH = "我们今天去公园散步，天气非常好，大家都很高兴。\n"
CODE = 'if (a[i] != b[i]) { printf("±%d°C · ²³\\n", x); } // ÀÁÂÃÄÅàáâãäå ¡¢£¤¥¦§¨© ¼½¾¿ ····\n'
EMOJI = "좋아요 👍🏽 👩‍👩‍👧 ❤️‍🔥 🇰🇷 ①② ㈜ ™ ㄱㄴ ㅋㅋ 뭐야?진짜 됬어?? 뷁 쩝\n"
GOOD = (KO, UHC, EN, FR, DE, PT, JA, ZH, CODE, EMOJI, KO + FR + "樂園 大韓民國 李氏\n", "Zoë…” Zoë’s “Brontë…”")


def windows(data: bytes) -> str:
    """CP1252 as browsers read it."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in data)


def as_latin(text: str) -> str:
    return text.encode().decode("latin-1")


UNDONE: dict[str, Callable[[str], str]] = {
    "cp949 as latin-1": lambda text: text.encode("cp949").decode("latin-1"),
    "cp949 as cp1252": lambda text: windows(text.encode("cp949")),
    "utf-8 as latin-1": as_latin,
    "utf-8 as cp1252": lambda text: windows(text.encode()),
    "utf-8 as latin-1 twice": lambda text: as_latin(as_latin(text)),
    "cp949 as latin-1, then utf-8 as cp1252": lambda t: windows(t.encode("cp949").decode("latin-1").encode()),
}
LOST: dict[str, Callable[[str], str]] = {
    "cp949 as utf-8": lambda text: text.encode("cp949").decode("utf-8", "replace"),
    "utf-8 as cp949": lambda text: text.encode().decode("cp949", "replace"),
    "utf-8 as cp949, without marks": lambda text: text.encode().decode("cp949", "ignore"),
    "utf-8 as cp949, question marks": lambda text: text.encode().decode("cp949", "replace").replace("\ufffd", "?"),
}


@pytest.mark.parametrize("declared", [None, "euc-kr", "utf-8", "iso-8859-1", "no such charset", "zip"])
@pytest.mark.parametrize(
    "codec", ["utf-8", "utf-8-sig", "cp949", "johab", "iso2022_kr", "utf-16", "utf-16-le", "utf-16-be"]
)
def test_bytes_decide_whatever_was_declared(codec: str, declared: str | None) -> None:
    for text in (KO, KO * 50 + EN, KO.replace("\n", "\r\n")):
        assert decode(text.encode(codec), declared) == (text, codec)


def test_other_encodings() -> None:
    assert decode(b"") == ("", "utf-8")
    assert decode(EN.encode(), "euc-kr") == (EN, "utf-8")
    assert decode(KO.encode("euc_kr")) == (KO, "cp949")
    assert decode(UHC.encode("cp949")) == (UHC, "cp949")
    assert decode(UHC.encode("johab")) == (UHC, "johab")
    assert decode(b"\xfe\xff" + KO.encode("utf-16-be")) == (KO, "utf-16")
    assert decode(EN.encode("utf-16-le")) == (EN, "utf-16-le")
    assert decode(EN.encode("utf-16-be")) == (EN, "utf-16-be")
    no_spaces = "오늘은아침부터비가내려서우산을들고나갔습니다"
    for codec in ("utf-16-le", "utf-16-be", "cp949"):
        assert decode(no_spaces.encode(codec)) == (no_spaces, codec)


def test_western_text_is_not_taken_for_korean() -> None:
    for text in (FR, DE.replace("Ä…Ö…Ü…", "Ä, Ö, Ü"), PT, "“It’s Zoë’s,” she said — “isn’t it?”\n" * 40):
        assert decode(text.encode("cp1252"), "euc-kr") == (text, "cp1252")
    text = "Une fenêtre, une forêt, l'été à Noël: 20°C.\n"
    assert decode(text.encode("latin-1"), "utf-8") == (text, "iso8859-1")


def test_a_few_korean_words_or_only_signs_are_read() -> None:
    for text in ("이름: 홍길동", "변별력", "A ※ B → C, “it’s”\n" * 30, "大韓民國 " * 40):
        assert decode(text.encode("cp949")) == (text, "cp949")


def test_what_was_declared_helps_where_the_bytes_show_nothing() -> None:
    assert decode((JA * 5).encode("euc_jp"), "euc-jp") == (JA * 5, "euc_jp")
    assert decode((ZH * 5).encode("gb18030"), "GB18030") == (ZH * 5, "gb18030")
    names = "뷁쀍" * 40
    assert decode(names.encode("cp949"), "ks_c_5601-1987")[1] == "cp949"


@pytest.mark.parametrize("codec", ["cp949", "utf-8"])
def test_a_cut_or_broken_character_does_not_spoil_a_file(codec: str) -> None:
    data = (KO * 5).encode(codec)
    assert decode(data[:-1] + "가".encode(codec)[:-1]) == ((KO * 5)[:-1], codec)
    at = len(KO.encode(codec))
    text, found = decode(data[:at] + b"\xff\n" + data[at:])
    assert (text, found) == (KO + "\ufffd\n" + KO * 4, codec)


@pytest.mark.parametrize("declared", [None, "euc-kr", "koi8-r", "unicode_escape", "undefined", "a\0b"])
def test_what_is_no_text_is_refused(declared: str | None) -> None:
    noise = random.Random(0).randbytes(3000)
    for data in (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + noise, noise, b"name" + b"\0" * 500 + b"text"):
        with pytest.raises(ChatBakerError, match="unreadable encoding"):
            decode(data, declared)
    with pytest.raises(ChatBakerError, match="unreadable encoding"):
        decode((JA * 5).encode("euc_jp"))


def test_utf8_costs_no_more_than_decoding() -> None:
    data = (KO * 20_000).encode()

    def fastest(step: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
        return min(times)

    assert fastest(lambda: decode(data)) < 4 * fastest(data.decode) + 0.01


@pytest.mark.parametrize("text", GOOD)
def test_good_text_is_left_alone(text: str) -> None:
    assert repair(text) == text
    assert repair(KO * 3 + text * 3) == KO * 3 + text * 3


@pytest.mark.parametrize("wrong", UNDONE.values(), ids=UNDONE)
def test_mojibake_is_undone(wrong: Callable[[str], str]) -> None:
    for text in (KO, UHC, KO + EN + UHC):
        assert repair(wrong(text)) == text
        assert repair(EN + wrong(text) + "그 밖의 줄은 멀쩡하다. 20°C ····\n") == (
            EN + text + "그 밖의 줄은 멀쩡하다. 20°C ····\n"
        )
    assert repair("제목: " + wrong("우리 나라의 사람들")) == "제목: 우리 나라의 사람들"


def test_small_mojibake_is_undone() -> None:
    assert repair("She didnâ€™t go to the cafÃ© â€” 20Â°C.") == "She didn’t go to the café — 20°C."
    assert repair(windows("좋아요 😀, 日本語".encode())) == "좋아요 😀, 日本語"
    assert repair("걱정".encode().decode("cp949")) == "걱정"  # one of the few words that survive being read so


@pytest.mark.parametrize("wrong", LOST.values(), ids=LOST)
def test_text_that_lost_bytes_is_given_up(wrong: Callable[[str], str]) -> None:
    assert repair(wrong(KO)) is None
    assert repair(wrong(KO * 20)) is None
    assert repair((KO + wrong(KO)) * 5) is None


def test_a_few_lost_characters_are_let_pass() -> None:
    text = KO * 30 + "여기\ufffd 하나"
    assert repair(text) == text
    assert "\ufffd" not in normalize(text)
    assert repair(KO + "\ufffd \ufffd \ufffd") is None


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (unicodedata.normalize("NFD", KO), KO),
        ("가\r\n나\r다\x0c라\u2028마", "가\n나\n다\n라\n마"),
        ("\ufeff가\u200b나\u00ad다\u2060라\ue000마\ufdd0바\U0010ffff사\x07아\ud800", "가나다라마바사아"),
        ("가\xa0나\u3000다\u2009라\u3164마", "가 나 다 라 마"),
        ("ＡＢＣ１２３！？（ｘ）～￦", "ABC123!?(x)~₩"),
        ("ﾻﾻ ￣▽￣ ﾊﾝｶｸ", "ㅋㅋ ￣▽￣ ﾊﾝｶｸ"),
        ("ᄏᄏ ᅲᅲ ᄒ\u200bᅡᆫ", "ㅋㅋ ㅠㅠ 한"),
        ("ᄒᆞᆫ글", "ᄒᆞᆫ글"),  # old Hangul has no other form
        ("ㅋ ㅋㅋ ㅋㅋㅋㅋㅋ ㅎㅎㅎ ㅠㅠㅠㅜㅜㅜ", "ㅋ ㅋㅋ ㅋㅋ ㅎㅎ ㅠㅠㅜㅜ"),
        ("ㅇㅋ ㄱㄱ ㄷㄷㄷ", "ㅇㅋ ㄱㄱ ㄷㄷㄷ"),
        ("와!!!!!! 왜???? 음...... 네~~~~~ ㅎㅎ^^^^ 흠………… 와!!!", "와!!! 왜??? 음... 네~~~ ㅎㅎ^^^ 흠……… 와!!!"),
        ("樂園 大韓民國 \uf914", "樂園 大韓民國 樂"),
        ("It\x92s \x93so\x94\x85", "It’s “so”…"),
        ("가  \n나\t\n다 ", "가\n나\n다"),
        ("가\n\n\n나\n\n\n\n다", "가\n\n\n나\n\n다"),
    ],
)
def test_one_way_of_writing(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        "# 제목\n----\n====\n####\n\n| 가 | 나 |\n|----|:----:|\n\n~~~~ python\nx = 'a'\n~~~~\n",
        "제목\n^^^^^^\n\n부제목\n......\n\n    return  f(x)   # ----\n           ~~~~^^^\n",
        "👩‍👩‍👧 👍🏽 ❤️‍🔥 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ 🇰🇷",
        "a,,,,b;;;; $$$$ //// 5 ****** __init__ ((((x)))) ①②③ ㎡ ㈜ 10½",
    ],
)
def test_structure_and_emoji_stay(text: str) -> None:
    assert normalize(text) == text


def test_joiners_outside_emoji_go() -> None:
    assert normalize("가\u200d나 👩\u200d 👩\u200d\u200b👧 \U000e0067a") == "가나 👩 👩👧 a"


def test_normal_text_stays_as_it_is() -> None:
    pool = (
        "aZé e\u0301ㅋㅎㅠㅜ!?…~.^'-=# \t\n\r\x0b\x0c\x85\x92\xa0\u2028\u3000\u200b\u200d\ufeff\ufe0f👩❤🏴\U000e0067"
        "\uff01\uff1f\uff5e\uff3e\uffbb\uffbe\uffc2\uffa4\u1100\u1112\u1161\u119e\u11ab\u11a8\ua960\ud7b0\ud7cb\u115f\u1160"
        "가하각\ue000\uf914漢\ufffd\u3164\ud800\U0010ffff\u0300\u0327\u2000\u212a\u1fef\x00"
    )
    chance = random.Random(0)
    for _ in range(30_000):
        normal = normalize("".join(chance.choices(pool, k=chance.randint(1, 16))))
        assert normalize(normal) == normal
        assert unicodedata.is_normalized("NFC", normal)
    for text in GOOD:
        assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    "piece",
    ["é", "Ã©", "ᄀ", "ᄀᆞ", "· ", " ", "!", "a \t", "똠", "嫄", "é ", "\n", "👩\u200d", "Aé", "ㅋ", "ê°", "\ufffd"],
)
def test_long_runs_of_anything_take_time_in_proportion(piece: str) -> None:
    text = piece * 100_000 + "ÀÌ´Ù \xa0똠"
    start = time.process_time()
    repair(text)
    normalize(text)
    assert time.process_time() - start < 5  # one step per pair of characters would take hours
