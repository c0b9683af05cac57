"""Personal data: what is masked, what must stay, and that a masked text stays as it is."""

from __future__ import annotations

import random

import pytest

from chatbaker.text.personal import KINDS, mask


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # e-mail
        ("메일은 abc.d+1@naver.com으로 주세요", "메일은 [EMAIL]으로 주세요"),
        ("Write to a_b@mail.example.co.uk.", "Write to [EMAIL]."),
        ("E-mail:abc@x.org, <mailto:d@y.io>", "E-mail:[EMAIL], <mailto:[EMAIL]>"),
        ("abc(at)daum.net, abc [at] naver[dot]com", "[EMAIL], [EMAIL]"),
        ("abc골뱅이naver.com / abc 골뱅이 네이버 / abc@네이버닷컴", "[EMAIL] / [EMAIL] / [EMAIL]"),
        ("abc @naver.com 또는 abc at gmail dot com", "[EMAIL] 또는 [EMAIL]"),
        # phone
        ("전화010-1234-5678로 주세요", "전화[PHONE]로 주세요"),
        ("01012345678이고 011 234 5678, 016.234.5678", "[PHONE]이고 [PHONE], [PHONE]"),
        ("010ㅡ1234ㅡ5678 010)1234-5678 010 – 1234 – 5678", "[PHONE] [PHONE] [PHONE]"),
        ("☎02)123-4567 (031) 123-4567, 070-7123-4567/0507-1234-5678", "☎[PHONE] [PHONE], [PHONE]/[PHONE]"),
        ("(+82) 10-1234-5678 +82 (0)2 123 4567 +821012345678", "[PHONE] [PHONE] [PHONE]"),
        ("call +1 (212) 555-0100, 212-555-0100 or (212) 555-0100", "call [PHONE], [PHONE] or [PHONE]"),
        ("+44 20 7946 0958; +81-3-1234-5678", "[PHONE]; [PHONE]"),
        ("연락처 02 123 4567 TEL02-123-4567", "연락처 [PHONE] TEL[PHONE]"),
        ("2024-01-15 010-1234-5678", "2024-01-15 [PHONE]"),
        # registration number
        ("900101-1234568입니다", "[RRN]입니다"),
        ("9001011234568, 900131-1234561, 900228-1234568", "[RRN], [RRN], [RRN]"),
        ("주민번호 210101-3123456 (2020년 뒤의 번호)", "주민번호 [RRN] (2020년 뒤의 번호)"),
        ("외국인등록번호: 850505-5123459", "외국인등록번호: [RRN]"),
        # card
        ("4111-1111-1111-1111 / 5500 0000 0000 0004", "[CARD] / [CARD]"),
        ("카드 4111111111111111로, 3782 822463 10005", "카드 [CARD]로, [CARD]"),
        # account
        ("국민은행 123456-01-123456 예금주 본인", "국민은행 [ACCOUNT] 예금주 본인"),
        ("신한 110-123-456789로, 3333-01-1234567 (카카오뱅크)", "신한 [ACCOUNT]로, [ACCOUNT] (카카오뱅크)"),
        ("My account number is 123456789012.", "My account number is [ACCOUNT]."),
        # address
        ("211.234.5.67에서 접속", "[IP]에서 접속"),
        ("ping 8.8.8.8, http://211.234.5.67:8080/", "ping [IP], http://[IP]:8080/"),
        ("[2606:4700::1111]:443", "[[IP]]:443"),
    ],
)
def test_masked(text: str, expected: str) -> None:
    masked, found = mask(text)
    assert masked == expected
    assert found.total() == sum(expected.count(f"[{kind}]") for kind in KINDS)
    assert all(found[kind] == expected.count(f"[{kind}]") for kind in KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-15 10:20:30, 20240115, 20240115123000, 2024. 1. 15., 15/01/2024",
        "1,234,567원, 1234567890원, 계좌에 12345678901원, 입금 2024.01.15 09:30",
        "1950-1953, 1592-1598, 1588-1234, 112",
        "3.141592653589793, 373.2417216, 37.566535, 126.977969, 6.02214076e23",
        "ISBN 978-89-123-4567-8, 9788912345678, ISBN 0198508625",
        "주문번호 12345678901, order 123456789012, 사업자등록번호 123-45-67890",
        "v1.2.3.4, 버전 10.20.30.40, Chrome/91.0.4472.124, 1.2.3.4 개요, numpy==11.22.33.44, 제1.2.3.40절",
        "127.0.0.1, 192.168.0.1, 10.1.2.3, 203.0.113.7, 255.255.255.0, 211.234.5.0, 2001:db8::1, fe80::1, 10:20:30",
        "d41d8cd98f00b204e9800998ecf8427e 550e8400-e29b-41d4-a716-446655440000 user_01012345678 x01012345678",
        "std::vector<int> x = 01010101010; translate(123.456 789.0123)",
        "@abc @abc.def git@github.com:a/b.git https://user:pass@host.com/x icon@2x.png pkg@1.0.0-rc.next a@b",
        "@app.route('/x'), @media, 3 @ $4.50, I work at kakao, 골뱅이 무침",
        "010-****-5678, 900101-1******, 4111-****-****-1111, 010-XXXX-1234",
        "900101-1234567, 901301-1234565, 900230-1234563, 900132-1234565, 8801234567893",
        "4111-1111-1111-1112, 9999888877776666, 1234567890123456",
        "110-123-456789, 123456-01-123456",  # nothing says that these are accounts
        "제2023-123호, 2019헌마1234, 25-20 19-25 25-23, (369623) 2011, AS17-148-22727",
        "| 123456789 | 1234567890 | 12345 67890 12345 67890",
    ],
)
def test_left_alone(text: str) -> None:
    assert mask(text) == (text, {})


def test_random_tail_needs_a_hyphen_and_the_name() -> None:
    assert mask("주민번호 2101013123456")[0] == "주민번호 2101013123456"
    assert mask("210101-3123456")[0] == "210101-3123456"
    assert mask("주문번호 4111111111111111")[0] == "주문번호 4111111111111111"


def test_nearest_word_decides() -> None:
    assert mask("은행 계좌와 사업자 번호 123-45-67890")[1] == {}
    assert mask("사업자 번호와 은행 계좌 123-45-67890")[1] == {"ACCOUNT": 1}
    assert mask("전화 0212345678, 주문 0212345678")[0] == "전화 [PHONE], 주문 0212345678"


def test_masked_text_stays() -> None:
    pieces = [
        *"0123456789",
        *"-. ()+@:/~\n",
        "계좌 ",
        "전화",
        "카드 ",
        "주민번호 ",
        "원",
        "[PHONE]",
        "[ACCOUNT] ",
        "골뱅이",
        "(at)",
    ]
    pieces += ["010-1234-5678", "abc@naver.com", "110-123-456789 ", "211.2.3.4", "+82 ", "2606:4700::1111", "https://"]
    source = random.Random(1)
    found = 0
    for _ in range(4000):
        masked, counts = mask("".join(source.choices(pieces, k=source.randint(1, 25))))
        assert mask(masked) == (masked, {})
        found += counts.total()
    assert found > 1000


def test_long_lists_do_not_creep() -> None:
    """A tag is no word that calls the next number an account, and one name does not reach over a whole list."""
    text, found = mask("계좌 " + "123-456-7890123, " * 2000)
    assert 1 <= found["ACCOUNT"] <= 3
    assert text.count("123-456-7890123") == 2000 - found["ACCOUNT"]
    assert mask("010-1234-5678 " * 2000)[1] == {"PHONE": 2000}
