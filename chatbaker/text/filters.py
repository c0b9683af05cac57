"""What each filter thinks of one document, and the boilerplate lines to take out of a good one.

`trim` takes out menus, notices, bylines and the like. `findings` measures what `trim` leaves, filter by filter; a
finding with a reason drops the document, and the limits are the recipe's. Both are pure functions of NFC text.

Shares are of UTF-16 units, whose kind one lookup table tells; an emoji counts twice. Repetition and function words are
measured after Gopher (Rae et al. 2021, appendix A), over characters rather than words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from resiliparse.parse.lang import detect_fast

from chatbaker.recipe import Filters

HANGUL, JAMO, LATIN, LETTER, DIGIT, SYMBOL, MARK, SPACE = range(8)  # kinds: the low bits of the table
PARTICLE, ENDING, STOP = 8, 16, 32  # flags above them
RANGES = [(HANGUL, "가힣"), (JAMO, "\u1100\u11ff"), (JAMO, "\u3131\u318e")]
RANGES += [(LATIN, ends) for ends in ("AZ", "az", "ÀÖ", "Øö", "ø\u024f", "\u1e00\u1eff")]
RANGES += [(MARK, mark * 2) for mark in ".,!?;:'\"()-…~·%“”‘’「」『』《》〈〉、。"]
FLAGS = (
    (PARTICLE, "는은이가을를에의로와과도서고며면게한할된될던든다요네까죠"),  # end words in sentences, seldom bare nouns
    (ENDING, "다요까죠음함됨임네지라자오군걸야어아해니데"),
    (STOP, ".!?…。\n"),
)
FUNCTION_WORDS = str.split("""the of and to in a is that it was for on with as at be by this i you he she they we are
his her not or have had but from my your what so do if an all when there which would can will me were one has""")
ENGLISH = 0.15  # share of these words that no other language reaches
SAMPLE = 2000  # characters from the beginning and from the middle tell the language
PHRASE = 32  # characters; a power of two

# Advertising for gambling, sex and pills, as letters without what is strewn between them (카.지.노). The plain words of
# the trade (도박, 카지노, casino) are not here: news and law use them. None comes without a ROOT.
GAMES = "카지노|바카라|슬롯|홀덤|토토|포커"
SPAM = re.compile(
    f"(?:{GAMES}|파워볼|릴게임|성인|야동|오피|먹튀|메이저)(?:사이트|총판|커뮤니티)|adult(?:dating|chat|videos)|camgirl|"
    f"(?:온라인|라이브|실시간|해외|모바일|메이저|에볼루션|호텔|사설)(?:{GAMES})|online(?:casino|slots|poker|betting)|"
    "출장(?:안마|마사지|업소|만남|샵|홈타이)|(?:buy|cheap)(?:viagra|cialis|pills)|신규(?:가입)?(?:쿠폰|머니)|nodeposit|"
    "(?:카톡|텔레|텔레그램)문의|먹튀(?:검증|없는|제보)|가입(?:코드|쿠폰|머니)|성인(?:용품|방송|만화)|무료(?:머니|야동)|"
    "casino(?:bonus|games)|안전(?:놀이터|공원)|free(?:spins|porn)|live(?:casino|sex)|xxx(?:video|movie)|escortservice|"
    "총판(?:모집|문의)|메이저놀이터|depositbonus|무제한환전|바다이야기|sportsbook|hotsingles|paydayloan|pornvideo|"
    "조건만남|애인대행|비아그라|시알리스|꽁머니|키스방|휴게텔|최음제|sexcam"
)
ROOTS = re.compile("카지노|바카라|토토|먹튀|놀이터|출장|성인|비아그라|casino|deposit|porn|sexcam|dating|viagra")
ENOUGH, REPEATS = 4, 3  # fewer different terms are no advertisement; what returns more often is what a text is about
MENU = (
    "홈|메인|로그인|로그아웃|회원가입|마이페이지|장바구니|주문조회|고객센터|공지사항|자유게시판|이용약관|메뉴|검색|"
    r"목록|닫기|문의하기|개인정보\s?(?:처리|취급|보호)\s?방침|청소년\s?보호\s?정책|사이트맵|(?:본문|메뉴)?\s?바로가기|"
    r"이전\s?글?|다음\s?글?|글쓰기|댓글(?:쓰기)?|공유(?:하기)?|인쇄(?:하기)?|스크랩|맨\s?위로|TOP|더\s?보기|회사소개|"
    r"오시는\s?길|채용(?:정보)?|(?:제휴|광고)\s?문의|정치|경제|사회|문화|국제|스포츠|연예|페이스북|트위터|인스타그램|"
    "유튜브|카카오톡|블로그|(?=[a-z])(?:home|about(?: us)?|contact(?: us)?|log ?(?:in|out)|sign ?(?:in|up)|register|"
    "search|menu|faqs?|blog|news(?:letter)?|help|careers|shop|cart|site ?map|privacy(?: policy)?|share|print|"
    "terms(?: of (?:service|use))?|cookie policy|advertis(?:e|ing)|follow us|back to top|facebook|twitter|instagram|"
    "youtube|next|prev(?:ious)?|close|products|services|sports?|politics|business|tech(?:nology)?|opinion|subscribe)"
)
BREAK = r"[ \t]*(?:[|｜>»›·•/]|\n\s*[-*•·]?)[ \t]*"
BULLETS = r"\W{0,3}(?:\n\s*[☞▶▷•·*-].*)*"
MAIL = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
REPORTER = r"[가-힣]{2,4}\s?(?:(?:인턴|선임|전문|객원)\s?)?(?:기자|특파원|통신원)"
DATELINE = rf"(?:[가-힣·]+\s?=[^\n)\]】]{{2,20}}[)\]】]\s*(?:{REPORTER})?\s*=?|[^\n)\]】]{{0,20}}{REPORTER}[)\]】])\s?"
MARKS = re.compile("ⓒ|©|eserved|무단|저작권자|기자|특파원|사진|구독하|제보|발행인|등록번호|무관")  # one is in each of:
MARKED = (
    r"(?!.*[다요]\. ).*?(?:(?<!\w)[ⓒ©]|all rights reserved|무단\s?(?:전재|복제|배포|사용).*(?:금지|금합니다)|"
    rf"저작권자\s?[(:<]|(?:기자|특파원|제보)[^.]*{MAIL}|[\[(</]\s?사진\s?(?:제공)?\s?[=:]|(?:발행인|등록번호)\s?:|"
    r"(?:네이버|유튜브|뉴스레터).*구독하(?:기|세요)|제보는\s.*(?:톡|메일|전화)|(?:기사|내용)[과와]\s?무관).*"
)
KOREAN = (
    r"(?:기사)?(?:입력|등록|승인|(?:최종\s?)?(?:수정|업데이트))\s?:?\s?(?:19|20)\d\d\s?[-./년].*|글자 ?크기.{0,10}|"
    r"(?:(?:[가-힣 ]{2,9}요|조회수?|추천수?|댓글|공감|스크랩)\s?[:(]?\s?\d[\d,]*\)?[\s|·]*){2,}|구독과 좋아요.*|"
    rf"\W{{0,3}}(?:관련|많이\s?본|인기|추천|이\s?시각.{{0,5}})\s?(?:기사|뉴스){BULLETS}|이 (?:글|기사)를? 공유\S*|"
    r"(?:글·)?(?:자료)?(?:사진|이미지|영상|자료)\s?(?:제공|출처)?\s?[=:].{0,40}|\S{2,5}\s?채널\s?추가\S*|[\[(]끝[\])]|"
    rf"(?:[취글사영편·]\S{{0,4}}\s?[·=]\s?)?{REPORTER}(?:\s?[/|].*)?|[\[(<【/=]\s?.{{0,20}}?{REPORTER}\s?[\])>】]?|"
    r"[\[<](?:사진|앵커|기자|리포트|광고|영상\S*)[\s\]>].*|[▶▷►].*(?:보기|바로가기|제보|구독하기|기사\s?:.*)\W*|"
    r"(?:이|본|당사) ?(?:웹)?(?:사이트)?[은는에].*쿠키를.*|URL이? 복사\S*|좋아요\s?\d+|☞.*(?<!다\.)"
)
ENGLISH_LINES = (
    f"(?:related (?:articles?|posts|stories)|you (?:may|might) also like|read (?:more|next)){BULLETS}|advertisement|"
    "this (?:article|story|post) (?:was )?(?:originally |first )?(?:published|appeared).{0,60}|back to top|load more|"
    "(?:we (?:and our partners )?use|this (?:web)?site uses|by .*our(?: use of)?) cookies.*|skip to (?:main )?content|"
    r"(?:last )?(?:posted|published|updated)(?: on|:)? .{0,20}(?:19|20)\d\d.{0,30}|(?:filed under|posted in)\W.{0,60}|"
    r"(?:sign up for|subscribe to|join) our .*(?:newsletter|mailing list).{0,60}|copyright\s*(?:\(c\)|(?:19|20)\d\d).*|"
    r"(?:leave|log in to leave) a (?:comment|reply)|(?:follow|like|find) (?:us|@\S+) on\s.{0,80}|"
    r"photo(?:graph)? ?(?:credit|by\b|:).{0,60}|(?:click to )?share (?:this|on)\b.{0,60}|your email address will not.*|"
    r"(?:accept|reject) all(?: cookies)?|click here (?:to|for)\s.{0,60}|image courtesy of.{0,60}"
)
LEAST = {
    "min_chars": "too_short",
    "own_language": "wrong_language",
    "grammar": "keywords",
    "function_words": "keywords",
}


class Finding(NamedTuple):
    """filter: its key in the recipe. value: what it measured. reason: why the document is dropped; None: passed."""

    filter: str
    value: float
    limit: float
    reason: str | None


def findings(text: str, language: str, limits: Filters) -> Iterator[Finding]:
    """What each filter thinks of the text without its boilerplate. For the names in LEAST the limit is a lower one."""
    for name, value in _measures(text, language, limits.judged_from):
        limit = getattr(limits, name)
        failed = value < limit if name in LEAST else value > limit
        yield Finding(name, value, limit, LEAST.get(name, name) if failed else None)


@lru_cache(maxsize=1)  # whoever asks for findings asks for this too
def trim(text: str, language: str) -> str:
    """The text without lines of boilerplate and without datelines; the text itself where there is none."""
    pattern = _boilerplate(language, MARKS.search(text) is not None)
    trimmed, found = pattern.subn(lambda match: "\n" if match["dateline"] else "", "\n" + text)
    return re.sub(r"\n{3,}", "\n\n", trimmed).strip() if found else text


@cache
def _boilerplate(language: str, marked: bool) -> re.Pattern[str]:
    """Lines of up to 250 characters. The plain line feed in front lets the search jump from line to line."""
    menu = rf"(?:[-*•·]\s?)?(?:{MENU})(?>(?:{BREAK}(?:.{{1,12}}?{BREAK})??|[ \t]+)(?:{MENU})){{2,}}"
    lines = [rf"[(<]?{MAIL}[)>]?", f"(?=[a-z])(?:{ENGLISH_LINES})", *[KOREAN] * (language == "ko"), *[MARKED] * marked]
    whole = rf"(?:{menu}|(?=.{{,250}}(?:\n|\Z))(?:{'|'.join(lines)}))[ \t]*(?=\n|\Z)"
    return re.compile(rf"\n[ \t]*(?:{whole}|(?P<dateline>[(\[【]{DATELINE}))", re.IGNORECASE)


def _measures(text: str, language: str, judged_from: int) -> Iterator[tuple[str, float]]:
    """(filter, value); shares of a text shorter than `judged_from` say little and are left out."""
    whole, text = len(text.strip()), trim(text, language).strip()
    yield "boilerplate", (whole - len(text)) / (whole or 1)
    yield "min_chars", len(text)
    units = np.frombuffer(f"\n{text.lower()}\n".encode("utf-16-le", "surrogatepass"), np.uint16)
    flags = _table()[units]
    kinds = flags & 7
    counts = np.bincount(kinds, minlength=8).tolist()
    letters = units[(kinds == HANGUL) | (kinds == LATIN)].tobytes().decode("utf-16-le")
    found = Counter(SPAM.findall(letters) if ROOTS.search(letters) else ())
    taken = sum(len(term) * min(count, REPEATS) for term, count in found.items())
    yield "spam", taken / len(letters) if len(found) >= ENOUGH else 0.0

    ink = len(units) - counts[SPACE] or 1
    share = (counts[HANGUL] + counts[JAMO] if language == "ko" else counts[LATIN]) / (sum(counts[:DIGIT]) or 1)
    judged = len(text) >= judged_from
    if language == "en" and judged:
        sample = text[:SAMPLE] + text[max(SAMPLE, len(text) // 2) :][:SAMPLE]
        words = sample.lower().split()
        functional = sum(map(set(FUNCTION_WORDS).__contains__, words)) / len(words)
        if functional < ENGLISH and detect_fast(sample)[0] != "en":
            share = 0.0
    yield "own_language", share
    if judged:
        yield "symbols", counts[SYMBOL] / ink
        yield "digits", counts[DIGIT] / ink
        yield "word_length", ink / np.count_nonzero((kinds[:-1] != SPACE) & (kinds[1:] == SPACE))
        yield "repeated_characters", np.count_nonzero((units[1:] == units[:-1]) & (kinds[1:] != SPACE)) / ink
        if language == "ko" and counts[HANGUL]:
            hangul = kinds == HANGUL
            ends = flags[:-1][hangul[:-1] > hangul[1:]]
            places = np.flatnonzero(hangul)
            before = places.searchsorted(np.flatnonzero(flags & STOP))  # Hangul before each end of a sentence or line
            ended = flags[places[before[1:] - 1]] & ENDING > 0
            particles = np.count_nonzero(ends & PARTICLE) / len(ends)
            yield "grammar", particles + (before[1:] - before[:-1])[ended].sum() / len(places)
        elif language == "en":
            yield "function_words", functional
        lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
        yield "repeated_lines", 1 - sum(map(len, set(lines))) / sum(map(len, lines))
        hashes, step, factor = units.astype(np.uint32), 1, 2_654_435_761
        while step < PHRASE:  # a polynomial hash of every run of characters; each step doubles the runs
            hashes = hashes[:-step] * np.uint32(factor) + hashes[step:]
            step, factor = 2 * step, factor * factor % 2**32
        hashes.sort()
        yield "repeated_phrases", np.count_nonzero(hashes[1:] == hashes[:-1]) / (len(hashes) or 1)


@cache
def _table() -> NDArray[np.uint8]:
    """Kind and flags of every UTF-16 unit; half a surrogate pair is a symbol."""
    tests = ((str.isalpha, LETTER), (str.isnumeric, DIGIT), (str.isspace, SPACE))
    kinds = (next((kind for test, kind in tests if test(chr(unit))), SYMBOL) for unit in range(65_536))
    table = np.fromiter(kinds, np.uint8)
    for kind, ends in RANGES:
        table[ord(ends[0]) : ord(ends[1]) + 1] = kind
    for flag, characters in FLAGS:
        table[[ord(character) for character in characters]] |= flag
    return table
