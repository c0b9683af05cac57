"""How much personal data `chatbaker.text.personal` finds and how much else it takes: in made text, and in real text.

    python benchmarks/clean/personal.py [--seed 1] [--data FOLDER [--show 100]]

Made: values follow the public rules (numbering plans, checksums, registries), are spelled in the ways people write
them and stand in carrier sentences. Only a sentence that comes out exactly as expected counts: any other one misses all
its values, and each tag in it is a false one. HARD are numbers of every other kind. Spellings called HELD were written
after the rules, in two rounds. The first run found 0.92 of the first and 0.60 of the second, which has the odd dashes;
what they taught has gone into the rules since, but for the few below that are left out for the sake of other numbers.
Real (--data): finds by kind and megabyte of the files below pretrain/ and raw/, the time, and samples to judge by eye.
"""

from __future__ import annotations

import argparse
import random
import re
import string
import sys
import time
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from chatbaker.jsonl import read_jsonl
from chatbaker.text.personal import KINDS, mask

POSITIVES, NEGATIVES = 8000, 16000

# In templates □ is a digit, ■ one from 2 to 9, {1-99} a number ({01-12}: with its zero), {hex8} hexadecimal digits,
# {name} and the like a method of Made. Two spaces part the templates.
NEUTRAL = """
VALUE  (VALUE)  제 것은 VALUE입니다.  여기 VALUE로 부탁드려요~  VALUE 이쪽이 더 빨라요 ㅎㅎ
적어 둔 것이 VALUE였는데 지워 주세요  혹시 VALUE를 아시나요?  오늘 3시까지 VALUE, 꼭이요!
2023년에 쓰던 VALUE는 이제 안 써요.  동생은 VALUE을 알려 줬다.  ☞VALUE  **VALUE**  "VALUE"라고 적혀 있었다
그 사람(VALUE)한테 물어봐  보낸 이 VALUE님  You can use VALUE from now on.  Mine is VALUE.
It was VALUE, I think; or was it not?  Please write to VALUE before 5pm  VALUE <- this one  - VALUE  | 7 | VALUE | 3 |
In 2019 she gave me VALUE and left.  What about VALUE?  ok: VALUE
"""
NEAR = {
    "PHONE": """
전화는 VALUE로 주세요  연락처: VALUE  문의 VALUE  ☎ VALUE  팩스(VALUE)로 보내 주세요  휴대폰 번호가 VALUE라서요
문자 주세요 VALUE  Tel. VALUE  call me at VALUE  Phone: VALUE  my cell is VALUE  text VALUE to join  Fax VALUE
문의사항은 전화 주십시오. VALUE입니다  전화VALUE""",
    "RRN": """
주민등록번호 VALUE  주민번호는 VALUE입니다.  주민등록번호: VALUE (본인)  외국인등록번호 VALUE로 조회
resident registration number VALUE  her resident number is VALUE  alien registration no. VALUE
주민번호 VALUE 확인 부탁드립니다""",
    "CARD": """
카드번호 VALUE  제 카드는 VALUE예요  card number: VALUE  my credit card VALUE was stolen
VALUE 이 카드로 결제해 주세요  Visa VALUE""",
    "ACCOUNT": """
국민은행 VALUE 예금주 본인  계좌번호: VALUE  신한 VALUE로 보내 주세요  VALUE 우리은행  농협 VALUE
카카오뱅크 VALUE으로 입금 부탁드려요  입금 계좌 VALUE  후원계좌는 하나은행 VALUE입니다  토스 VALUE  VALUE (기업은행)
My account number is VALUE.  bank account VALUE  Account: VALUE  새마을금고 VALUE  우체국 VALUE로 송금했습니다
계좌이체 VALUE  VALUE 신한  보낼 곳: 국민) VALUE  계좌는 우리은행이고 번호는 VALUE입니다  acct no. VALUE
wire it to account #VALUE  IBK VALUE  VALUE (카카오뱅크)  부산은행/VALUE  예금주와 계좌 번호(VALUE)를 확인해 주세요""",
    "ACCOUNT HELD": """
모임통장 VALUE  카뱅 VALUE  새마을 VALUE  SC제일 VALUE  수협 VALUE  자동이체 VALUE  sort code and account VALUE
deposit into VALUE (my bank)  A/C VALUE  환불계좌(신한): VALUE  VALUE (예금주: 본인)  통장으로 보내 줘 VALUE""",
    "IP": """
IP VALUE  아이피는 VALUE입니다  서버 VALUE에 접속  ip: VALUE  the host VALUE is down  ping VALUE  server at VALUE
접속 IP는 VALUE로 확인됨""",
}
NEAR["EMAIL"] = NEUTRAL
EMAIL = """
{name}@{host}  {name}@{host}  {name}@{host}  {name}@{host}  {name}@{host}  {name}@{host}  mailto:{name}@{host}
{name}(at){host}  {name} (at) {host}  {name}(AT){host}  {name}[at]{host}  {name} [at] {host}  {name}[at]{big}[dot]com
{name}골뱅이{host}  {name} 골뱅이 {host}  {name}(골뱅이){host}  {name}@네이버  {name}골뱅이 네이버  {name}@네이버닷컴
{name} at {big} dot com  {name} @{big}.com  {name}@ {big}.com  {name} @ {big}.com  {name} (at) {big} (dot) com
{name}[@]{host}  {name}골뱅이{big} 닷컴  <{name}@{host}>  {name} 골뱅이 {big} 점 com  e-mail:{name}@{host}
{name}@한메일.net
"""
EMAIL_HELD = """
{name} [골뱅이] {big}.com  {name}(@){host}  {name} 골뱅이 {big}닷컴  {name}@sub.{letters}.museum
{name}[at]{big} 닷 com  {name}@{letters}.co.uk  {name}@123mail.net  {name} @ {letters}.com
{name} at {letters} dot com
"""
PHONE = """
010-■□□□-□□□□  010-■□□□-□□□□  010-■□□□-□□□□  010-■□□□-□□□□  010-■□□□-□□□□  010 ■□□□ □□□□  010.■□□□.□□□□  010■□□□□□□□
010■□□□□□□□  010■□□□□□□□  010 - ■□□□ - □□□□  010–■□□□–□□□□  010ㅡ■□□□ㅡ□□□□  010)■□□□-□□□□  010-■□□□□□□□
01{6-9}-■□□-□□□□  01{6-9}■□□□□□□  011-■□□□-□□□□  011 ■□□ □□□□  010—■□□□—□□□□  010~■□□□~□□□□  02-■□□-□□□□  02-■□□□-□□□□
0{31-33}-■□□-□□□□  0{41-44}-■□□-□□□□  0{51-55}-■□□-□□□□  0{61-64}-■□□-□□□□  (02)■□□-□□□□  (0{31-33}) ■□□-□□□□
02)■□□□-□□□□  0{51-55})■□□-□□□□  02.■□□.□□□□  0{61-64}.■□□.□□□□  070-■□□□-□□□□  070-■□□□-□□□□  0505-■□□-□□□□
0507-■□□□-□□□□  080-■□□-□□□□  +82-10-■□□□-□□□□  +82 10 ■□□□ □□□□  +82 10-■□□□-□□□□  +8210■□□□□□□□  +82.10.■□□□.□□□□
+82 (0)10-■□□□-□□□□  +82 (0)2-■□□-□□□□  (+82) 10-■□□□-□□□□  +82-2-■□□□-□□□□  +82 {51-55} ■□□ □□□□  82-10-■□□□-□□□□
+82)10-■□□□-□□□□  (■□□) ■□□-□□□□  ■□□-■□□-□□□□  ■□□.■□□.□□□□  1-■□□-■□□-□□□□  +1 ■□□-■□□-□□□□  +1 (■□□) ■□□-□□□□
+1 ■□□ ■□□ □□□□  +1■□□■□□□□□□  +44 20 ■□□□ □□□□  +44 7□□□ □□□□□□  +81-3-■□□□-□□□□  +81 90 □□□□ □□□□  +49 30 ■□□□□□□
+49151□□□□□□□□  +86 138 □□□□ □□□□  +33 6 □□ □□ □□ □□  +61 2 □□□□ □□□□  +84 9□ □□□ □□□□  +65 ■□□□ □□□□  010 ■□□□-□□□□
0082-10-■□□□-□□□□  +971 5□ □□□ □□□□  +1.■□□.■□□.□□□□  TEL:02-■□□-□□□□  010/■□□□/□□□□  010 . ■□□□ . □□□□  010.■□□□-□□□□
02‑■□□‑□□□□  H.P010-■□□□-□□□□  +82 10)■□□□-□□□□  001-82-10-■□□□-□□□□  (+44) 20 ■□□□ □□□□  +1(■□□)■□□-□□□□
"""
PHONE_CALLED = "02 ■□□ □□□□  0{31-33} ■□□ □□□□  02■□□□□□□□  0{51-55}■□□□□□□  ■□□ ■□□ □□□□"  # only where called a phone
PHONE_HELD = """
010 ■□□□ - □□□□  (010) ■□□□-□□□□  010- ■□□□- □□□□  010■□□□-□□□□  02 ) ■□□-□□□□  +82 070-■□□□-□□□□
0{41-44}) ■□□ - □□□□  +82(0)10-■□□□-□□□□  82)10-■□□□-□□□□  +39 06 ■□□ □□□□□  +55 11 9■□□□-□□□□  +7 (495) ■□□-□□-□□
+34 6□□ □□□ □□□  +852 ■□□□ □□□□  +353 1 ■□□ □□□□  ■□□ - ■□□ - □□□□  (■□□)■□□.□□□□  080) ■□□-□□□□  0303-■□□□-□□□□
0504-■□□□-□□□□
"""
ACCOUNT = """
1□□□□□-□□-□□□□□□  ■□□-□□□-□□□□□□  1■□□-□□□-□□□□□□  ■□□-□□□□-□□□□-□□  1■□□-□□-□□□□□□□  ■□□-□□□□□□-□□□□□
■□□-□□□□□□-□□-□□□  1□□□-□□□□-□□□□  9□□□-□□□□-□□□□-□  ■□□-□□-□□□□□□  ■□□-□□□□□□□□-□□□  ■□□□□□□□□□□  ■□□□□□□□□□□□
■□□□□□□□□□□□□□  ■□□ □□□ □□□□□□  1■□□ □□□ □□□□□□  ■□□□□□ □□ □□□□□□
"""
ACCOUNT_HELD = "1■□□ - □□□ - □□□□□□  ■□□.□□□.□□□□□□  ■□□–□□□–□□□□□□"
IP = """
{v4}  {v4}  {v4}  2001:2d8:{hex4}::{hex3}  2406:da12:{hex4}:{hex4}::{hex2}  2a00:1450:4{hex3}:8{hex2}::2{hex3}
2607:f8b0::{hex4}  2600:1f18:{hex4}:{hex4}:{hex4}:{hex4}:{hex4}:{hex4}  {v4}:8080  [{v4}]  http://{v4}/a/b.html
[2406:DA12:4F3B::{1-99}]:443  2001:2D8:AB{10-99}::C0DE
"""
IP_CALLED = "{11-29}.{0-20}.{0-20}.{1-20}"  # might be a version, if not called an address
IP_HELD = "{v4}/32  2A03:2880:F10C:83:FACE:B00C:0:25DE  http://[2606:4700::{hex4}]/  {v4}:443/tcp"
BETWEEN = "\n그리고 다음 날에는 비가 왔다고 합니다. And then it rained for a day.\n"
# What stays around the tag.
FRAMES = "mailto:V  <V>  e-mail:V  TEL:V  H.PV  V:8080  [V]  http://V/a/b.html  [V]:443  V/32  http://[V]/  V:443/tcp"

HARD = """
date: {y}-{01-12}-{01-28}  {y}.{01-12}.{01-28}  {y}. {1-12}. {1-28}.  {y}-{01-12}-{01-28} {time}
date: {y}-{01-12}-{01-28}T{time}+09:00  {1-28}/{1-12}/{y}  {y}년 {1-12}월 {1-28}일
date: {y}-{01-12}-{01-28} ~ {y}-{01-12}-{01-28}  {y}-{01-12}-{01-28} - {y}-{01-12}-{01-28}
date: {y}.{01-12}.{01-28}-{y}.{01-12}.{01-28}  ({y}-{01-12}-{01-28}) ({y}-{01-12}-{01-28})  {y}{01-12}{01-28}
date: {y}{01-12}{01-28}{10-23}□□□□  {10-99}{01-12}{01-28}  {y}{01-12}{01-28}-{y}{01-12}{01-28}
date: {y}{01-12}{01-28}T{10-23}3045Z
time: {time}  {time}.□□□  {1-12}시 {10-59}분 {10-59}초  9:{10-59}-18:{10-59}  00:{time},□□□ --> 00:{time},□□□
time: H{10-23}:30 □□□ □□□.□□
price: {1-999},□□□,□□□원  ₩{1-99},□□□,□□□  ${1-999},□□□,□□□.□□  {1-9}□□□□□□□□□원  {1-9}□□□□□□□ won  {100-999}만 원
price: 계좌에 {1-99},□□□,□□□원  입금액 {1-99},□□□,□□□원  USD {1-9},□□□,□□□  {1-9},000,000~{1-9},500,000원
price: 1월 2일 {1-9},000,000,000원
count: {1-9}□□□□□□□□□명  총 {1-9}□□□□□□□□건  {100-999} {100-999} {100-999} {100-999}  {1-9},□□□,□□□ people
count: {1-9}□□□□□□□□□ bytes  전화 {10-99}통, 문자 {100-999}건  {1-9},□□□,□□□개  {1-9}억 {1000-9999}만 {1000-9999}원
isbn: 978-89-□□□-□□□□-□  978-0-□□□-□□□□□-□  978□□□□□□□□□□  ISBN 979-11-□□□□-□□□-□  ISBN 89-□□□-□□□□-□
isbn: ISBN: 979□□□□□□□□□□  ISSN □□□□-□□□□  ISBN □□□□□□□□□X
order: 주문번호 {1-9}□□□□□□□□  주문번호 {1-9}□□□□□□□□□□□□□□□  order #{1-9}□□□□□□□□□□  송장번호 □□□□□□□□□□□□
order: 접수번호 {y}-□□□□-□□□□□□  {1-9}□□□□□□□□□  {1-9}□□□□□□□□□□□  {1-9}□□□□□□□□□□□□□  ORD-{y}{01-12}{01-28}-□□□□□□□
order: invoice □□□□□□□□□□  운송장 □□□□-□□□□-□□□□  tracking number □□□□□□□□□□□□
years: {y}-{y}  {y}~{y}  1592-1598  1636–1637  ({y}-{y}, {y}-{y})  {y}/{y}  {y} {y} {y}  {y} - {y} - {y}
years: {y}~{y}년 {10-99}.□%→{10-99}.□%
company line: 15{44-99}-□□□□  16{00-99}-□□□□  18{00-99}-□□□□  112  119  고객센터 1588-□□□□
coordinates: {33-38}.□□□□, {124-131}.□□□□  ({33-38}.□□□□□□,{124-131}.□□□□□□)
coordinates: 북위 {33-38}.□□□□□□□ 동경 {124-131}.□□□□□□□  -{10-80}.□□□□□□ {10-99}.□□□□□□□□
coordinates: +{33-38}.□□□□ +{124-131}.□□□□  {33-38}°{1-59}'{1-59}"N {124-131}°{1-59}'{1-59}"E
constant: 3.14159265358979  3.141592653589793238462643  2.718281828459045  1.41421356237309504880  6.02214076e23
constant: 299792458 m/s  0.5772156649015329  1.618033988749894  3.14159 26535 89793 23846  9.1093837015e-31
constant: 0.□□□□□□□□□□□□□□□□  -{1-9}.□□□□□□□□□□□□□□□  {100-999}.□□□□□□□
hash: {hex64}  {hex40}  {hex32}  {hex7}  {hex8}-{hex4}-4{hex3}-a{hex3}-{hex12}  sha256:{hex64}  commit {hex12}
hash: □□□□□□□□-□□□□-4□□□-8□□□-□□□□□□□□□□□□
code: x = {1-9}□□□□□□□□□;  0x{hex8}  1_000_000_000_000  3.4028235e+38  [□□□, □□□□, □□□□, □□□□□]  a[□□] = 0.□□□□□□□□
code: id=□□□□□□□□□□□□&page=2  #□□□□□□  std::vector<int>  i = 2147483647  9223372036854775807
code: rgb({0-255}, {0-255}, {0-255})  0b1010101010101  01010101010  f(■□□ - ■□□ - ■□□□)
code: https://host.io/□□□□□□□□□□/■□□□-□□□□.html  img_□□□□□□□□_□□□□□□.jpg  test_□□□□□□□□□□□□□  mid=■□□□□□□□□□&oid=□□□
code: translate(■□□.□□□ ■□□.□□□□)  M{10-99}.□□□ {10-99}.□□□-{1-9}.□□□ {1-9}.□□□
version: v{v}  버전 {v}  version {v}  Chrome/{60-130}.0.{1000-6999}.{0-200}  10.0.{10000-22631}.{1-999}
version: {1-9}.{0-20}.{0-20}-rc.{1-9}  =={v}  릴리스 {v}  Version: {1-30}.{0-255}.{0-255}.{0-255}
version: {letters}-{v}.tar.gz  {1-20}.{0-9}.0.0  OID 1.3.6.1.4.1.311  EC 2.7.1.26
section: {v} 개요  {1-12}.{1-12}.{1-12}.{1-12} Overview  제{1-9}.{1-9}.{1-9}.{1-9}절
section: section {1-99}.{1-99}.{1-99}.{1-99}  §{1-30}.{1-99}.{1-9}.{1-9}
stock code: □□□□□□.KS  (005930)  종목코드 □□□□□□  KR7□□□□□□□□□  □□□□□□ □□□□□□ □□□□□□
law: 제{y}-{1-999}호  법률 제□□□□□호  고시 제{y}-□□□□호  제{1-99}조제{1-9}항  {y}헌마□□□□  특허 제10-{y}-□□□□□□□호
law: 10-{y}-□□□□□□□  의안번호 21□□□□□
score: {0-9}-{0-9}  {0-21}-{0-21}, {0-21}-{0-21}, {0-21}-{0-21}  {60-120}:{60-120}  {1-99}승 {1-99}패
score: 25-20 19-25 25-23 25-18  6-4, 7-6({0-9})
table: | ■□□□□□□□□ | ■□□□□□□□□□ | ■□□□□□□□□□□ |  ■□□□□ ■□□□□ ■□□□□ ■□□□□  {1-99}.□□ {1-99}.□□ {1-99}.□□ {1-99}.□□
table: {y} {100-999} {1000-9999} {1000-9999}  ■□□□□□□□□□□□;■□□□□□□□□□□□
table: {1-9} {1-9} {10-99} {10-99} {100-999} {100-999} {1000-9999}  1□□□□□□□□□□□□□□□  3, 11, 15, 29, 35, 44
private ip: 10.{0-255}.{0-255}.{1-254}  192.168.{0-255}.{1-254}  172.{16-31}.{0-255}.{1-254}  127.0.0.1  0.0.0.0
private ip: 203.0.113.{1-254}  255.255.255.0  fe80::1  ::1  2001:db8::{1-999}  fd00::{1-9999}  198.51.100.{1-254}
private ip: 224.0.0.251  IP 192.168.0.{1-254}  http://10.0.0.{1-254}:8080/
at sign: @{letters}  @{letters}.{letters}  @{letters}님 안녕하세요  git@github.com:{letters}/{letters}.git
at sign: @app.route('/{letters}')  @{letters}/core@1.2.3  @media (max-width: □□□px)  https://user:pass@{letters}.com/x
at sign: {letters}@2x.png  user@localhost  @property  3 @ $4.50  meet @ 5pm  pip install {letters}@1.0.4  {letters}@v2
at sign: 골뱅이 무침 2인분  we met at noon dot  {letters} (at) 7 pm  npm i {letters}@17.0.0-beta.next  a@b.c
masked: 010-****-□□□□  9□0101-1******  □□□□-****-****-□□□□  02-***-****  {letters}***@  [PHONE]
masked: 국민은행 [ACCOUNT] 예금주  010-XXXX-XXXX  02-000
checksum: {wrong_card}  {10-99}1{3-9}□□-□□□□□□□  {10-99}{13-99}□□-□□□□□□□  8801□□□□□□□□□  바코드 880□□□□□□□□□□
checksum: GTIN 0□□□□□□□□□□□□□  IMEI 490154203237518  ORCID 0000-0002-1825-0097  timestamp 1□□□□□□□□□
checksum: 17{3-9}□□□□□□□□□□  16□□□□□□□□
registry: 사업자등록번호 □□□-□□-□□□□□  {1-6}□□-□□-□□□□□  법인등록번호 110111-0□□□□□□  통신판매업 {y}-서울강남-□□□□□
registry: 우편번호 □□□□□  학번 {y}□□□□□□  {10-99}가□□□□  CAS □□□□-□□-□  arXiv:{10-24}{01-12}.□□□□□
registry: doi:10.□□□□/□□□□□□.□□□□  doi:10.1038/s41586-020-2649-2  NCT0□□□□□□□  US 10,□□□,□□□ B2  AS17-148-22727
registry: 관리번호 □□□□-□□□□□□  ■□□-□□□-□□□  {1000-9999}-{1000-9999}-{1000-9999}  S/N □□□□□□□□-□□□□
registry: 지번 ■□□□□□□□□□-1-□□□□□□□□  ICD-10 A00.0-B99.9
other: 10시 10분이요.  {1-99}.{1-9}%  1920x1080  100m 9.58초  {1-9}-{1-9}-{1-9}  {1-99}번 버스  B{1-4}-□□□호
other: {1-300}동 {1-3}□□□호  ■□□-□□□□  12-34-56 78-90-12  치열은 2.1.2.3  1.e4 e5 2.Nf3 Nc6 3.Bb5
other: ({100-999}, {100-999}, {100-999})
"""
HARD_CARRIERS = (
    NEUTRAL
    + "표 2. VALUE  Table 3: VALUE (see below)  값은 VALUE이다  결과: VALUE  VALUE.  the value VALUE appears twice"
)


def split(templates: str) -> list[str]:
    return [template for line in templates.strip().splitlines() for template in line.split("  ")]


class Made:
    """Fills templates and builds numbers with a checksum, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pick = self.random.choice

    def fill(self, template: str) -> str:
        return re.sub(r"□|■|\{(?:(\d+)-(\d+)|hex(\d+)|(\w+))\}", self._token, template)

    def _token(self, match: re.Match[str]) -> str:
        low, high, hexes, name = match.groups()
        if low:
            number = str(self.random.randint(int(low), int(high)))
            return number.zfill(len(low)) if low[0] == "0" and len(low) > 1 else number
        if hexes:
            return self.pick("123456789abcdef") + "".join(self.pick("0123456789abcdef") for _ in range(int(hexes) - 1))
        if name:
            return str(getattr(self, name)())
        return self.pick(string.digits[2:] if match[0] == "■" else string.digits)

    def letters(self) -> str:
        return "".join(self.pick(string.ascii_lowercase) for _ in range(self.random.randint(3, 8)))

    def name(self) -> str:
        plain = self.letters()
        return self.fill(
            self.pick([plain, plain.upper(), plain + "□□", f"x.{plain}", f"{plain}_b", plain + "+c", plain + "-d□"])
        )

    def big(self) -> str:
        return self.pick(["naver", "gmail", "daum", "hanmail"])

    def host(self) -> str:
        ends = [".co.kr", ".com", ".org", ".ac.kr", "-x.io", ".go.kr", ".kr"]
        company = [self.letters() + end for end in ends]
        return self.pick([f"{self.big()}.com", "Gmail.com", "hanmail.net", "mail." + self.letters() + ".com", *company])

    def y(self) -> int:
        return self.random.randint(1950, 2026)

    def time(self) -> str:
        return self.fill("{00-23}:{00-59}:{00-59}")

    def v(self) -> str:
        return self.fill(self.pick(["{1-9}.{0-9}.{0-9}.{1-9}", "{0-20}.{0-20}.{0-20}.{0-20}"]))

    def v4(self) -> str:
        first = self.pick([n for n in range(11, 223) if n not in (100, 127, 169, 172, 192, 198, 203)])
        return f"{first}." + self.fill("{0-255}.{31-255}.{1-254}")

    def card_number(self, start: str, size: int) -> str:
        body = start + "".join(self.pick(string.digits) for _ in range(size - 1 - len(start)))
        total = 0
        for place, character in enumerate(reversed(body)):
            double = int(character) * 2 if place % 2 == 0 else int(character)
            total += double - 9 if double > 9 else double
        return body + str(-total % 10)

    def wrong_card(self) -> str:
        number = self.card_number("4", 16)
        number = number[:-1] + str((int(number[-1]) + self.random.randint(1, 9)) % 10)
        return self.pick([number, "-".join(re.findall("....", number))])

    # One of each kind: (spelling, value, word needed nearby).

    def email_value(self) -> tuple[str, str, str]:
        spelling = self.pick(split(EMAIL_HELD if self.random.random() < 0.2 else EMAIL))
        return spelling, self.fill(spelling), ""

    def phone_value(self) -> tuple[str, str, str]:
        which = self.random.random()
        templates = PHONE_HELD if which < 0.12 else PHONE_CALLED if which < 0.2 else PHONE
        spelling = self.pick(split(templates))
        return spelling, self.fill(spelling), "PHONE" if templates is PHONE_CALLED else ""

    def rrn_value(self) -> tuple[str, str, str]:
        year, foreign = self.random.randint(1930, 2019), self.random.random() < 0.3
        sign = (5 if foreign else 1) + (2 if year >= 2000 else 0) + self.random.randint(0, 1)
        body = f"{year % 100:02}" + self.fill("{01-12}{01-28}") + str(sign) + self.fill("□□□□□")
        total = sum(int(character) * (2 + place % 8) for place, character in enumerate(body))
        last = (13 - total % 11) % 10 if foreign else (11 - total % 11) % 10
        spelling = self.pick(["-", "-", "-", "", " - ", "–", "random", " ", "‑", " -", "ㅡ"])
        if spelling == "random":  # given out since October 2020: no checksum
            last = (last + self.random.randint(1, 9)) % 10
        between = "-" if spelling == "random" else spelling
        return spelling, body[:6] + between + body[6:] + str(last), "RRN" if spelling == "random" else ""

    def card_value(self) -> tuple[str, str, str]:
        between = self.pick(["-", "-", " ", "", "", ".", " - ", "–", "‑", "—", "/"])
        if self.random.random() < 0.2:
            number = self.card_number("3" + self.pick("47"), 15)
            between = between[:1].replace("–", "-").replace("‑", "-").replace("—", "-").replace("/", "-")
            return f"amex {between}", between.join([number[:4], number[4:10], number[10:]]), ""
        start = self.fill(
            self.pick(["4", "4", "5{1-5}", "35{30-89}", "62", "2221", "2720", "6011", "65", "9410", "949"])
        )
        number = self.card_number(start, 16)
        return between, between.join(re.findall("....", number)), "CARD" if start[0] == "9" and not between else ""

    def account_value(self) -> tuple[str, str, str]:
        which = self.random.random()
        spelling = self.pick(split(ACCOUNT_HELD if which < 0.1 else ACCOUNT))
        return spelling, self.fill(spelling), "ACCOUNT HELD" if which > 0.85 else "ACCOUNT"

    def ip_value(self) -> tuple[str, str, str]:
        which = self.random.random()
        templates = IP_HELD if which < 0.2 else IP_CALLED if which < 0.3 else IP
        spelling = self.pick(split(templates))
        return spelling, self.fill(spelling), "IP" if templates is IP_CALLED else ""

    def positive(self) -> tuple[list[tuple[str, str]], str, str]:
        """[(kind, spelling)], the sentence, the sentence as it should come out."""
        text, expected, kinds = "", "", []
        for kind in [self.pick([*KINDS, "PHONE"])] + ([self.pick([*KINDS])] if self.random.random() < 0.15 else []):
            spelling, value, near = getattr(self, f"{kind.lower()}_value")()
            near = near or (kind if self.random.random() < 0.4 else "")
            carrier = self.pick(split(NEAR.get(near, NEUTRAL)))
            if ")" in value and "(" not in value:  # "(02)123-4567)": whose bracket is it?
                carrier = carrier.replace("(VALUE)", "VALUE")
            frame = next((frame for frame in split(FRAMES) if _framed(frame, spelling)), "V")
            tag = frame.replace("V", f"[{kind}]")
            between = BETWEEN if text else ""
            text += between + carrier.replace("VALUE", value)
            expected += between + carrier.replace("VALUE", tag)
            kinds.append((kind, spelling + (" HELD" if near == "ACCOUNT HELD" else "")))
        return kinds, text, expected

    def negative(self) -> tuple[str, str]:
        """What it is, and a sentence with it."""
        what, _, templates = self.pick(HARD.strip().splitlines()).partition(": ")
        return what, self.pick(split(HARD_CARRIERS)).replace("VALUE", self.fill(self.pick(split(templates))))


def _framed(frame: str, spelling: str) -> bool:
    before, after = frame.split("V")
    return spelling.startswith(before) and spelling.endswith(after) and (before != "[" or spelling.count("[") == 1)


HELD = {*split(EMAIL_HELD), *split(PHONE_HELD), *split(ACCOUNT_HELD), *split(IP_HELD), " -", "ㅡ", "—", "/"}


def made(seed: int, wrong: int) -> None:
    maker = Made(seed)
    right, asked, false, fooled = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    spellings: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    mistakes: list[str] = []
    for number in range(POSITIVES):
        kinds, text, expected = maker.positive()
        if number % 5 == 0:  # what the pipeline makes of decomposed Hangul
            text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text))
        masked, found = mask(text)
        assert mask(masked) == (masked, Counter()), text
        for kind, spelling in kinds:
            for key in (kind, "held" if spelling in HELD or "HELD" in spelling else "tuned"):
                asked[key] += 1
                right[key] += masked == expected
            spellings[f"{kind} {spelling}"][0] += masked == expected
            spellings[f"{kind} {spelling}"][1] += 1
        if masked != expected:
            false.update(found)
            mistakes.append(f"  {kinds} {text!r} -> {masked!r}")
    for _ in range(NEGATIVES):
        what, text = maker.negative()
        masked, found = mask(text)
        if found:
            false.update(found)
            fooled[what] += 1
            mistakes.insert(0, f"  {what}: {text!r} -> {masked!r}")
    print(f"{POSITIVES:,} sentences with personal data, {NEGATIVES:,} with other numbers\n")
    print("kind     values  recall  precision")
    for kind in KINDS:
        precision = right[kind] / (right[kind] + false[kind])
        print(f"{kind:8} {asked[kind]:6,}  {right[kind] / asked[kind]:.4f}  {precision:.4f}")
    total, hits = asked["held"] + asked["tuned"], right["held"] + right["tuned"]
    print(f"all      {total:6,}  {hits / total:.4f}  {hits / (hits + false.total()):.4f}")
    print(f"held-out spellings: {right['held']} of {asked['held']} ({right['held'] / asked['held']:.4f})")
    worst = sorted(spellings, key=lambda name: spellings[name][0] / spellings[name][1])[:5]
    print("worst spellings: " + ", ".join(f"{name} {spellings[name][0]}/{spellings[name][1]}" for name in worst))
    print(f"sentences without personal data that were changed: {dict(fooled)}")
    print("\n".join(mistakes[:wrong]))


def real(data: Path, show: int, seed: int) -> None:
    print("\nfile                                     MB  ns/byte  finds per MB")
    samples: list[str] = []
    for path in sorted([*data.glob("raw/*/*.jsonl.zst"), *data.glob("pretrain/*.jsonl.zst")]):
        texts = [str(record["text"]) for _, record in read_jsonl(path) if "text" in record]
        texts = [unicodedata.normalize("NFC", text.replace("\r", "")) for text in texts]
        size = sum(len(text.encode()) for text in texts)
        if not size:
            continue
        start = time.process_time()
        results = [mask(text) for text in texts]
        spent = time.process_time() - start
        finds = sum((found for _, found in results), Counter[str]())
        rates = "  ".join(f"{kind} {count / size * 1e6:.2f}" for kind, count in finds.items())
        print(f"{path.relative_to(data)!s:36} {size / 1e6:6.1f}  {spent / size * 1e9:7.1f}  {rates}")
        for text, (masked, found) in zip(texts, results, strict=True):
            samples += _around(path.stem, text, masked) if found else []
    random.Random(seed).shuffle(samples)
    print("\n".join(samples[:show]))


def _around(name: str, text: str, masked: str) -> list[str]:
    """Each find with some text around it: what stands in `text` between the pieces that `masked` kept."""
    pieces = re.split(rf"\[({'|'.join(KINDS)})\]", masked)
    found, end = [], len(pieces[0])
    for before, kind, after in zip(pieces[::2], pieces[1::2], pieces[2::2], strict=False):
        start, end = end, text.find(after[:20], end + 4) if after else len(text)
        found.append(f"{name:16.16} {kind:8}{text[start:end]!r:28} {before[-40:]!r} .. {after[:15]!r}")
        end += len(after)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wrong", type=int, default=20, help="wrong answers to print")
    parser.add_argument("--data", type=Path, help="a folder with raw/ and pretrain/")
    parser.add_argument("--show", type=int, default=0, help="finds in real text to print")
    args = parser.parse_args()
    made(args.seed, args.wrong)
    if args.data:
        real(args.data, args.show, args.seed)


if __name__ == "__main__":
    main()
