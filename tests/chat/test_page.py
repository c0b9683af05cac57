"""The web chat in a real Chromium, over a small server that answers as told; one test asks the real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chatbaker.chat.session import Session
from chatbaker.infer.engine import Sampling
from tests.chat.serving import NAME, serving

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

PAGE = Path(__file__).parents[2] / "chatbaker" / "chat" / "page"
CHROMIUM = os.environ.get("CHATBAKER_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; CHATBAKER_CHROMIUM may name one")

POLICY = "; ".join(
    (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'",
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    )
)
HOLD = "\N{SYMBOL FOR NULL}"
"""In an answer: the stream waits here until the test says go."""
RICH = """## 반죽 시간 계산

**물(水)**은 *따뜻하게*, `이스트`는 [이 글](https://example.com/a_(b))처럼 넣어요. https://example.com/빵 참고.

1. 밀가루를 잽니다
   - 강력분 300 g
     - 체에 칩니다
   - 소금 6 g
2. 물을 붓습니다

```python
# 발효 시간을 어림합니다
def minutes(grams: int, warm: bool = True) -> float:
    base = 60 if warm else 95
    return base + grams * 0.05

print(f"{minutes(300):.0f}분")
```

| 재료 | 무게 | 비율 |
|:-----|-----:|:----:|
| 밀가루 | 300 g | 100 % |
| 물 | 195 g | 65 % |

> 기다림이 반죽을 만듭니다.
> 서두르지 마세요.

---

snake_case_name, 2024. 3. 1., ~~취소~~, \\*별\\*, a < b && c > d
"""
ATTACKS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked=1'>",
    '<svg onload="window.hacked=1"><a xlink:href="javascript:window.hacked=1">x</a></svg>',
    "<iframe src='https://evil.example/'></iframe>",
    "<style>@import url(https://evil.example/x.css)</style>",
    "[click](javascript:window.hacked=1)",
    "[click](JaVaScRiPt:window.hacked=1)",
    "[click](&#106;avascript:window.hacked=1)",
    "[click](java\tscript:window.hacked=1)",
    "[click](data:text/html,<script>window.hacked=1</script>)",
    "[click](vbscript:x) [click](file:///etc/passwd) [click](//evil.example)",
    "[![nested](https://evil.example/pixel.png)](javascript:window.hacked=1)",
    "![pixel](https://evil.example/pixel.png)",
    "![pixel](data:image/svg+xml,<svg onload=alert(1)>)",
    "<javascript:window.hacked=1> <https://ok.example>",
    '[a](https://ok.example/"onmouseover="window.hacked=1)',
    "```html\n<script>window.hacked=1</script>\n```",
    '```"><script>window.hacked=1</script>\nx\n```',
    "| <script>window.hacked=1</script> | b |\n|---|---|\n| ![x](https://evil.example/t.png) | `<b>` |",
    "> - <img src=https://evil.example/q.png>\n>   1. <b onclick=window.hacked=1>x</b>",
    "&lt;script&gt; &#x3c;script&#x3e;",
]


class Fake(ThreadingHTTPServer):
    """answers: what comes next, one per request; a list is its chunks, a dict the fields of an error."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.reset()

    def reset(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.key: str | None = None
        self.truncated = 0
        self.go = threading.Event()
        self.cut_off = threading.Event()

    def handle_error(self, *_: Any) -> None:
        """A page that goes away is no news."""


class Handler(SimpleHTTPRequestHandler):
    server: Fake
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript; charset=utf-8"}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=str(PAGE))

    def log_message(self, *_: Any) -> None: ...

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            super().do_GET()
        elif self.allowed():
            self.reply(200, {"object": "list", "data": [{"id": "fake-mini", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.server.requests.append(request)
        answer = self.server.answers.pop(0) if self.server.answers else f"답 {len(self.server.requests)}"
        if isinstance(answer, dict):
            self.reply(answer.pop("status"), {"error": answer}, answer.pop("headers", {}))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        chunks = [answer] if isinstance(answer, str) else answer
        try:
            for n, chunk in enumerate(chunks):
                if chunk == HOLD:
                    self.server.go.wait(20)
                    continue
                choice = {"index": 0, "delta": {"content": chunk}, "finish_reason": None}
                first = {"truncated": {"messages": self.server.truncated}} if n == 0 and self.server.truncated else {}
                self.event({"choices": [choice], **first})
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 7, "completion_tokens": 42}
            self.event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.cut_off.set()

    def event(self, event: dict[str, Any]) -> None:
        data = f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):  # not where characters end
            self.wfile.write(half)
            self.wfile.flush()

    def allowed(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self.reply(401, {"error": {"message": "no key", "type": "authentication_error", "code": "invalid_api_key"}})
        return False

    def reply(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.go.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Any, fake: Fake) -> Iterator[Any]:
    fake.reset()
    context, seen = new_context(browser, fake.url)
    yield context
    fake.go.set()
    context.close()
    assert not seen, seen


def new_context(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """A browser context, and what must stay empty: errors of the page, broken policy, outside requests."""
    context = browser.new_context(
        **{"base_url": url, "locale": "ko-KR", "viewport": {"width": 1200, "height": 800}, **options}
    )
    context.set_default_timeout(8000)
    seen: list[str] = []

    def outside(route: Any) -> None:
        seen.append(f"outside request: {route.request.url}")
        route.abort()

    context.route(re.compile(f"^(?!{re.escape(url)}|data:|blob:)"), outside)
    context.on("weberror", lambda error: seen.append(str(error.error)))
    said = ("Failed to load resource",)  # an answer of 4xx, which a test asked for
    context.on("console", lambda m: m.type == "error" and not m.text.startswith(said) and seen.append(m.text))
    return context, seen


@pytest.fixture
def page(context: Any) -> Any:
    return visit(context)


def visit(context: Any) -> Any:
    page = context.new_page()
    page.goto("/")
    expect(page.locator("#model")).not_to_be_empty()
    return page


def ask(page: Any, text: str) -> None:
    page.fill("#box", text)
    page.press("#box", "Enter")


def until(page: Any, expression: str) -> None:
    for _ in range(250):  # wait_for_function needs eval, which the policy forbids
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"never true: {expression}")


def finished(page: Any) -> None:
    expect(page.locator("#stop")).to_be_hidden()


answers = ".assistant .text"
questions = ".user .text"


def test_an_answer_streams_in_and_says_what_it_cost(page, fake):
    fake.answers = [["안녕", "하세", HOLD, "요! **반", "갑", "습니다**"]]
    ask(page, " 안녕? ")
    expect(page.locator(answers)).to_have_text("안녕하세")
    expect(page.locator(".turn.assistant")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#speech")).to_have_text("답변을 쓰고 있습니다.")  # and not the answer, piece by piece
    fake.go.set()
    expect(page.locator(".assistant strong")).to_have_text("반갑습니다")
    expect(page.locator(".usage")).to_contain_text("42토큰 · 초당 ")
    expect(page.locator("#speech")).to_have_text("답변이 끝났습니다. 안녕하세요! **반갑습니다**")
    expect(page.locator("#box")).to_have_value("")
    request = fake.requests[0]
    assert request["messages"] == [{"role": "user", "content": "안녕?"}]
    assert request["stream"] is True
    assert request["truncate"] == "oldest"
    assert request["model"] == "fake-mini"
    defaults = Sampling()
    assert request["max_tokens"] == defaults.max_new_tokens
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        assert request[name] == getattr(defaults, name), name
    assert "seed" not in request


def test_enter_while_composing_does_not_send_and_one_enter_after_it_does(page, fake):
    page.focus("#box")
    device = page.context.new_cdp_session(page)
    device.send("Input.imeSetComposition", {"text": "하", "selectionStart": 1, "selectionEnd": 1})
    device.send("Input.imeSetComposition", {"text": "한", "selectionStart": 1, "selectionEnd": 1})
    # the Enter that ends a composition, as Chromium and Firefox report it, and as Safari does (already not composing)
    key = {"type": "rawKeyDown", "windowsVirtualKeyCode": 229, "key": "Enter", "code": "Enter"}
    device.send("Input.dispatchKeyEvent", key)
    for extra in ({"isComposing": True, "keyCode": 229}, {"isComposing": True, "keyCode": 13}, {"keyCode": 229}):
        sent = """(box, extra) => !box.dispatchEvent(
            new KeyboardEvent("keydown", {key: "Enter", bubbles: true, cancelable: true, ...extra}))"""
        assert page.eval_on_selector("#box", sent, extra) is False, extra
    assert fake.requests == []
    device.send("Input.insertText", {"text": "한글"})
    expect(page.locator("#box")).to_have_value("한글")
    page.keyboard.press("Enter")
    expect(page.locator(answers)).to_have_text("답 1")
    assert [request["messages"][-1]["content"] for request in fake.requests] == ["한글"]
    expect(page.locator("#box")).to_have_value("")


def test_shift_enter_makes_a_line_and_decomposed_hangul_is_sent_composed(page, fake):
    page.fill("#box", unicodedata.normalize("NFD", "첫 줄 각"))
    page.press("#box", "Shift+Enter")
    page.keyboard.insert_text("둘째 🙂")
    page.press("#box", "Enter")
    finished(page)
    assert fake.requests[0]["messages"][0]["content"] == "첫 줄 각\n둘째 🙂"


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_keeps_what_came_and_frees_the_server(page, fake, how):
    fake.answers = [["하나 ", HOLD, *["더 "] * 20_000]]
    ask(page, "세어 봐")
    expect(page.locator(answers)).to_have_text("하나")
    page.click("#stop") if how == "button" else page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("멈춘 답변입니다.")
    expect(page.locator(answers)).to_have_text("하나")
    fake.go.set()
    assert fake.cut_off.wait(10)
    page.fill("#box", "다음")
    page.click("#send")
    expect(page.locator(answers)).to_have_count(2)
    finished(page)
    assert [m["content"] for m in fake.requests[1]["messages"]] == ["세어 봐", "하나 ", "다음"]


def test_retry_and_edit_make_versions_to_switch_between(page, fake):
    ask(page, "물음")
    expect(page.locator(answers)).to_have_text("답 1")
    page.locator(".assistant .retry").click()
    expect(page.locator(answers)).to_have_text("답 2")
    expect(page.locator(".assistant .tools")).to_contain_text("2/2")
    ask(page, "이어서")
    expect(page.locator(answers).nth(1)).to_have_text("답 3")
    page.locator(".assistant .older").click()
    expect(page.locator(answers)).to_have_text(["답 1"])
    expect(page.locator(".assistant .newer")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(answers)).to_have_text(["답 2", "답 3"])

    page.locator(".user .edit").first.click()
    page.locator(".user textarea").fill("고친 물음")
    page.keyboard.press("Escape")
    expect(page.locator(questions).first).to_have_text("물음")
    page.locator(".user .edit").first.click()
    page.locator(".user textarea").fill("고친 물음")
    page.keyboard.press("Enter")
    expect(page.locator(answers)).to_have_text(["답 4"])
    assert fake.requests[3]["messages"] == [{"role": "user", "content": "고친 물음"}]
    page.locator(".user .older").click()
    expect(page.locator(answers)).to_have_text(["답 2", "답 3"])


def test_reload_finds_the_conversation_and_the_half_written_answer(page, fake):
    fake.answers = ["첫 답", ["반쯤 ", "쓴", HOLD]]
    ask(page, "하나")
    expect(page.locator(answers)).to_have_text("첫 답")
    ask(page, "둘")
    expect(page.locator(answers).nth(1)).to_have_text("반쯤 쓴")
    page.fill("#box", "쓰던 글")
    page.reload()
    expect(page.locator(answers)).to_have_text(["첫 답", "반쯤 쓴"])
    expect(page.locator(".note")).to_have_text("답변이 중간에 끊겼습니다.")
    expect(page.locator("#box")).to_have_value("쓰던 글")
    page.goto("/")
    page.fill("#box", "아직 보내지 않은 글")
    page.reload()
    expect(page.locator("#box")).to_have_value("아직 보내지 않은 글")
    page.locator("#chats .name").click()
    expect(page.locator("#box")).to_have_value("쓰던 글")
    expect(page.locator(answers)).to_have_text(["첫 답", "반쯤 쓴"])


def test_a_retry_that_fails_leaves_the_old_answers(page, fake):
    fake.answers = ["답 하나", "답 둘", {"status": 500, "message": "탔어요", "code": None}]
    ask(page, "하나")
    finished(page)
    ask(page, "둘")
    finished(page)
    page.locator(".assistant .retry").first.click()
    expect(page.locator("#problem")).to_contain_text("탔어요")
    expect(page.locator(answers)).to_have_text(["답 하나", "답 둘"])


def test_a_question_without_an_answer_is_kept_and_asked_again(page, fake):
    fake.answers = [{"status": 400, "message": "too many tokens", "code": "context_length_exceeded"}, "짧은 답"]
    ask(page, "너무 긴 물음")
    expect(page.locator("#problem")).to_contain_text("너무 길어서")
    expect(page.locator(questions)).to_have_text("너무 긴 물음")
    page.reload()
    expect(page.locator("#problem")).to_contain_text("아직 답변이 없습니다.")
    ask(page, "짧은 물음")  # beside it, so that roles keep taking turns
    expect(page.locator(answers)).to_have_text("짧은 답")
    assert fake.requests[1]["messages"] == [{"role": "user", "content": "짧은 물음"}]
    page.locator(".user .older").click()
    expect(page.locator(questions)).to_have_text("너무 긴 물음")


def test_a_busy_server_is_asked_again_and_a_broken_one_reported(page, fake):
    busy = {"status": 429, "message": "queue full", "code": "busy"}
    fake.answers = [{**busy, "headers": {"Retry-After": "0"}}, {**busy, "headers": {"Retry-After": "0"}}, "이제 돼요"]
    ask(page, "바빠?")
    expect(page.locator(answers)).to_have_text("이제 돼요")
    fake.answers = [{**busy, "headers": {"Retry-After": "50"}}]
    ask(page, "또?")
    expect(page.locator(".waiting")).to_contain_text("50초 뒤에")
    page.click("#stop")
    fake.answers = [{"status": 500, "message": "구운 빵이 탔어요", "code": None}]
    page.click("#problem button")
    expect(page.locator("#problem")).to_contain_text("구운 빵이 탔어요")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.click("#problem button")
    expect(page.locator("#problem")).to_contain_text("연결할 수 없습니다")
    page.unroute("**/v1/chat/completions")
    page.click("#problem button")
    expect(page.locator(answers).nth(1)).to_contain_text("답")


def test_a_key_is_asked_for_only_where_the_server_wants_one(page, fake):
    expect(page.locator("#key-form")).to_be_hidden()
    fake.key = "sesame"
    ask(page, "열려라")
    expect(page.locator("#problem")).to_contain_text("API 키가 필요합니다")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#toasts")).to_contain_text("들어갈 수 없습니다")
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    expect(page.locator(answers)).to_have_text("답 1")
    expect(page.locator("#key-form")).to_be_hidden()
    assert page.evaluate("JSON.stringify(localStorage)").count("sesame") == 0
    page.reload()
    ask(page, "또")
    expect(page.locator(answers).nth(1)).to_have_text("답 2")


def test_a_notice_where_the_history_was_cut(page, fake):
    ask(page, "하나")
    finished(page)
    fake.truncated = 2
    ask(page, "둘")
    expect(page.locator(answers).nth(1)).to_have_text("답 2")
    expect(page.locator(".note")).to_contain_text("가장 오래된 메시지 2개")
    order = page.eval_on_selector_all("#turns > li", "all => all.map(one => one.className)")
    assert order == ["turn user", "turn assistant", "cut", "turn user", "turn assistant"]


def test_nothing_in_an_answer_runs_or_is_fetched(page, fake):
    fake.answers = ATTACKS.copy()
    for attack in ATTACKS:
        ask(page, attack)
        finished(page)
    tags = page.eval_on_selector_all(".text *", "all => [...new Set(all.map(one => one.localName))]")
    allowed = {
        "a",
        "b",
        "blockquote",
        "br",
        "button",
        "code",
        "div",
        "em",
        "figcaption",
        "figure",
        "li",
        "ol",
        "p",
        "pre",
    }
    allowed |= {"span", "strong", "svg", "table", "tbody", "td", "th", "thead", "tr", "ul", "use"}
    assert set(tags) <= allowed - {"b"}
    links = page.eval_on_selector_all(".text a", "all => all.map(one => [one.href, one.rel, one.target])")
    assert links
    for href, rel, target in links:
        assert href.startswith(("https://", "http://")), href
        assert "noopener" in rel
        assert target == "_blank"
    names = page.eval_on_selector_all(".text *", "all => all.flatMap(one => one.getAttributeNames())")
    assert not [name for name in names if name.startswith("on") or name in ("style", "src")]
    assert page.evaluate("window.hacked") is None


def test_markdown(page, fake):
    fake.answers = [RICH]
    ask(page, "빵?")
    text = page.locator(answers)
    expect(text.locator("h4")).to_have_text("반죽 시간 계산")
    expect(text.locator("p strong")).to_have_text("물(水)")  # although Hangul follows the closing bracket
    expect(text.locator("em")).to_have_text("따뜻하게")
    links = text.locator("a").evaluate_all("all => all.map(one => [one.textContent, one.href])")
    assert links == [["이 글", "https://example.com/a_(b)"], ["https://example.com/", "https://example.com/"]]
    expect(text.locator("ol > li > ul > li > ul > li")).to_have_text("체에 칩니다")
    expect(text.locator("pre")).to_contain_text('print(f"{minutes(300):.0f}분")')
    expect(text.locator("pre .keyword").first).to_have_text("def")
    expect(text.locator("pre .comment")).to_have_text("# 발효 시간을 어림합니다")
    expect(text.locator("td.end").first).to_have_text("300 g")
    expect(text.locator("blockquote br")).to_have_count(1)
    expect(text.locator("del")).to_have_text("취소")
    expect(text.locator("p").last).to_have_text("snake_case_name, 2024. 3. 1., 취소, *별*, a < b && c > d")


def test_markdown_written_piece_by_piece_is_the_same_as_at_once(page):
    text = RICH + "\n\n끝\n- 하나\n\n- 둘\n  셋\n\n1. 가\n\n2. 나\n```\n열린 코드\n" + "\n\n**닫히지 않은\n\n문단 `코드"
    found = page.evaluate(
        """async (text) => {
            const { Markdown } = await import("/markdown.js");
            const once = (part) => {
                const root = document.createElement("div");
                new Markdown(root).update(part);
                return root.innerHTML;
            };
            const root = document.createElement("div"), grown = new Markdown(root);
            for (let end = 1; end <= text.length; end++) {
                grown.update(text.slice(0, end), true);
                if (end % 7) continue;
                const other = document.createElement("div"), also = new Markdown(other);
                for (let part = end % 5; part < end; part += 5) also.update(text.slice(0, part), true);
                also.update(text.slice(0, end));
                if (other.innerHTML !== once(text.slice(0, end))) return text.slice(0, end);
            }
            grown.update(text);
            return root.innerHTML === once(text) ? null : root.innerHTML;
        }""",
        text,
    )
    assert found is None


def test_no_text_makes_the_page_hang(page):
    texts = ["*" * 50_000, "[" * 50_000, "`" * 49_999 + " `", "**a " * 20_000, "> " * 20_000, "- " * 20_000]
    texts += ["|a" * 20_000 + "\n" + "|-" * 20_000, "<br" + " " * 50_000, "[a](" * 20_000, "`a``b" * 20_000]
    texts += [
        "```js\n" + "/*'" * 30_000,
        "\\" * 60_000,
        "#" * 50_000 + " " * 50_000 + "x",
        "![a" * 20_000,
        "_a" * 30_000,
    ]
    texts += ["~~a" * 20_000, "http://" * 10_000, "".join("  " * n + "- a\n" for n in range(300)), "> a\n" * 20_000]
    for text in texts:
        spent = page.evaluate(
            """async (text) => {
                const { Markdown } = await import("/markdown.js");
                const start = performance.now();
                new Markdown(document.createElement("div")).update(text);
                return performance.now() - start;
            }""",
            text,
        )
        assert spent < 2000, text[:10]


def test_language_follows_the_browser_and_the_switch(browser, fake):
    fake.reset()
    context, seen = new_context(browser, fake.url, locale="en-US")
    page = visit(context)
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.get_by_placeholder("Write a message")).to_be_focused()
    ask(page, "안녕")
    expect(page.locator(answers)).to_have_attribute("lang", "ko")
    expect(page.locator(".usage")).to_contain_text("42 tokens")
    page.select_option("#language", "ko")
    expect(page.locator("html")).to_have_attribute("lang", "ko")
    expect(page.get_by_placeholder("메시지를 입력하세요")).to_be_visible()
    expect(page.locator(".usage")).to_contain_text("42토큰")
    page.reload()
    expect(page.get_by_role("button", name="새 대화")).to_be_visible()
    context.close()
    assert not seen


def test_every_word_is_there_in_both_languages_and_used():
    words = json.loads((PAGE / "words.json").read_text(encoding="utf-8"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.[jh]*") if path.suffix != ".json")
    used = set(re.findall(r'data-(?:t|label|hint)="(\w+)"', code)) | set(re.findall(r'\bt\(\s*"(\w+)"', code))
    assert used <= set(words)
    for key, (korean, english) in words.items():
        assert f'"{key}"' in code or key.startswith("finish_"), f"{key} is used nowhere"
        assert set(re.findall(r"\{\w+\}", korean)) == set(re.findall(r"\{\w+\}", english)), key
        assert re.search("[가-힣]", korean) or korean == english, key
        assert not re.search("[ㄱ-힣]", english), key


def test_a_phone_needs_no_sideways_scrolling(browser, fake):
    fake.reset()
    fake.answers = [RICH + "\n\n" + "가나다라" * 60 + "\n\n" + "x" * 300, "네"]
    options = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
    context, seen = new_context(browser, fake.url, **options)
    page = visit(context)
    expect(page.locator("#side")).to_be_hidden()
    page.fill("#box", "빵" * 200)
    page.press("#box", "Enter")  # on a screen keyboard: a line
    assert fake.requests == []
    page.tap("#send")
    expect(page.locator(".usage")).to_be_visible()
    parts = "[...document.querySelectorAll('html, #scroll, header, #below')]"
    wide = f"{parts}.filter((part) => part.scrollWidth > part.clientWidth).length"
    assert page.evaluate(wide) == 0
    page.tap("#menu")
    expect(page.locator("#side")).to_be_visible()
    assert page.evaluate(wide) == 0
    page.tap("#new")
    expect(page.locator("#side")).to_be_hidden()
    expect(page.locator("#welcome")).to_be_visible()
    page.tap("#tune")
    assert page.evaluate("document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth")
    context.close()
    assert not seen


CONTRAST = """() => {
    const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgb = (color) => {
        paint.clearRect(0, 0, 1, 1);
        paint.fillStyle = color;
        paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data];
    };
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const color = rgb(getComputedStyle(node).backgroundColor);
            if (color[3] === 255) return color;
        }
        return rgb(getComputedStyle(document.body).backgroundColor);
    };
    const linear = (c) => (c <= 0.04045 * 255 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const bad = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(":disabled, noscript")) continue;
        const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) bad.push([walker.currentNode.data.trim().slice(0, 20), node.className, ratio]);
    }
    return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_have_the_contrast_to_read(browser, fake, scheme):
    fake.reset()
    fake.truncated = 1
    fake.answers = [RICH, {"status": 500, "message": "탔어요", "code": None}]
    context, seen = new_context(browser, fake.url, color_scheme=scheme)
    page = visit(context)
    ask(page, "빵?")
    finished(page)
    ask(page, "또?")
    expect(page.locator("#problem")).to_contain_text("탔어요")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert page.evaluate(CONTRAST) == []
    page.select_option("#theme", "dark" if scheme == "light" else "light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
    assert page.evaluate(CONTRAST) == []
    page.click("#tune")
    assert page.evaluate(CONTRAST) == []
    context.close()
    assert not seen


def test_settings_and_the_system_prompt_are_sent_and_remembered(page, fake):
    page.click("#tune")
    page.fill("#system", "반말로 답해.")
    page.fill("[name=temperature]", "0")
    page.fill("[name=seed]", "7")
    page.click("#settings .main")
    page.click("#tune")
    page.fill("[name=top_k]", "-3")  # cannot be
    page.click("#settings .main")
    expect(page.locator("#settings")).to_be_visible()
    page.keyboard.press("Escape")
    ask(page, "안녕")
    finished(page)
    request = fake.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "반말로 답해."}
    assert (request["temperature"], request["seed"], request["top_k"]) == (0, 7, Sampling().top_k)
    page.reload()
    ask(page, "또")
    finished(page)
    assert fake.requests[1]["messages"][0]["content"] == "반말로 답해."
    assert fake.requests[1]["temperature"] == 0
    page.keyboard.press("Control+Shift+O")
    expect(page.locator("#welcome")).to_be_visible()
    ask(page, "새로")
    finished(page)
    assert fake.requests[2]["messages"] == [{"role": "user", "content": "새로"}]


def test_the_list_renames_deletes_takes_back_and_searches(page, fake):
    fake.answers = ["고양이는 야옹", "강아지는 멍멍"]
    for question in ("첫째", "둘째"):
        page.click("#new")
        ask(page, question)
        finished(page)
    names = page.locator("#chats .name")
    expect(names).to_have_text(["둘째", "첫째"])
    page.fill("#search", unicodedata.normalize("NFD", "야옹"))
    expect(names).to_have_text(["첫째"])
    page.fill("#search", "없는 말")
    expect(page.locator("#chats")).to_have_text("찾는 대화가 없습니다.")
    page.fill("#search", "")
    page.locator("#chats li", has_text="첫째").locator(".edit").click()
    page.locator("#chats input").fill("고양이 이야기")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["둘째", "고양이 이야기"])
    page.locator("#chats li", has_text="둘째").locator(".delete").click()
    expect(names).to_have_text(["고양이 이야기"])
    expect(page.locator("#welcome")).to_be_visible()
    page.click("#toasts button")
    expect(names).to_have_text(["둘째", "고양이 이야기"])
    expect(page.locator(answers)).to_have_text("강아지는 멍멍")
    page.reload()
    expect(names).to_have_text(["둘째", "고양이 이야기"])


def test_export_can_be_imported_elsewhere_and_saves_of_the_terminal_too(page, fake, browser, tmp_path):
    ask(page, "물음")
    finished(page)
    page.locator(".assistant .retry").click()
    expect(page.locator(answers)).to_have_text("답 2")
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / download.value.suggested_filename
    assert path.name == "물음.jsonl"
    download.value.save_as(path)
    line = json.loads(path.read_text(encoding="utf-8"))
    assert line["messages"] == [{"role": "user", "content": "물음"}, {"role": "assistant", "content": "답 2"}]
    session = Session(None, Sampling())  # type: ignore[arg-type]
    session.load(path)
    assert session.messages == line["messages"]
    saved = {"messages": [{"role": "system", "content": "짧게"}, {"role": "user", "content": "터미널"}]}
    saved["messages"].append({"role": "assistant", "content": unicodedata.normalize("NFD", "네")})
    for name, encoding in (("terminal.json", "utf-8"), ("windows.jsonl", "cp949")):
        text = json.dumps(saved, ensure_ascii=False) + "\n"
        tmp_path.joinpath(name).write_bytes((unicodedata.normalize("NFC", text)).encode(encoding))
    (tmp_path / "bad.json").write_text('{"a": 1}', encoding="utf-8")

    context, seen = new_context(browser, fake.url)
    other = visit(context)
    other.set_input_files("#file", tmp_path / "bad.json")
    expect(other.locator("#toasts")).to_have_text("대화가 든 파일이 아닙니다.")
    other.set_input_files("#file", path)
    expect(other.locator("#toasts")).to_have_text("대화 1개를 가져왔습니다.")
    other.set_input_files("#file", path)  # twice is once
    for name in ("terminal.json", "windows.jsonl"):
        other.set_input_files("#file", tmp_path / name)
    expect(other.locator("#chats .name")).to_have_text(["터미널", "터미널", "물음"])
    other.locator("#chats .name").last.click()
    expect(other.locator(".assistant .tools")).to_contain_text("2/2")
    other.locator("#chats .name").first.click()
    expect(other.locator(answers)).to_have_text("네")
    ask(other, "또")
    finished(other)
    assert fake.requests[-1]["messages"][0] == {"role": "system", "content": "짧게"}
    context.close()
    assert not seen


def test_two_tabs_lose_nothing_of_each_other(page, context, fake):
    ask(page, "처음")
    finished(page)
    other = context.new_page()
    other.goto(page.url)
    expect(other.locator(answers)).to_have_text("답 1")
    fake.answers = [["왼쪽 ", HOLD, "끝"], "오른쪽"]
    ask(page, "왼쪽 물음")
    expect(page.locator(answers).nth(1)).to_have_text("왼쪽")
    expect(other.locator(answers).nth(1)).to_have_text("왼쪽")  # the other tab follows
    other.locator(".assistant .retry").first.click()
    expect(other.locator(answers)).to_have_text("오른쪽")
    fake.go.set()
    expect(page.locator(answers).nth(1)).to_have_text("왼쪽 끝")
    other.reload()
    other.locator(".assistant .older, .assistant .newer").and_(other.locator(":enabled")).first.click()
    shown = [other.locator(answers).all_inner_texts()]
    other.locator(".assistant .older, .assistant .newer").and_(other.locator(":enabled")).first.click()
    shown.append(other.locator(answers).all_inner_texts())
    assert sorted(map(len, shown)) == [1, 2]
    assert "왼쪽 끝" in sum(shown, [])
    assert "오른쪽" in sum(shown, [])


def test_the_end_stays_in_view_only_for_who_is_there(page, fake):
    fake.answers = [["줄\n\n" * 60, HOLD, "줄\n\n" * 60, "끝"]]
    ask(page, "길게")
    expect(page.locator(".assistant p")).to_have_count(60)
    distance = "[document.querySelector('#scroll')].map(s => s.scrollHeight - s.clientHeight - s.scrollTop)[0]"
    until(page, f"{distance} < 2")
    page.mouse.move(700, 300)
    page.mouse.wheel(0, -200)
    until(page, f"{distance} > 100")
    at = page.evaluate("document.querySelector('#scroll').scrollTop")
    fake.go.set()
    finished(page)
    assert page.evaluate("document.querySelector('#scroll').scrollTop") == at
    page.click("#latest")
    until(page, f"{distance} < 2")


def test_a_long_paste_is_sent_whole(page, fake):
    text = "긴 글을 붙여 넣습니다. " * 20_000
    page.focus("#box")
    page.evaluate("text => document.execCommand('insertText', false, text)", text)
    page.keyboard.press("Enter")
    finished(page)
    assert fake.requests[0]["messages"][0]["content"] == text.strip()


def test_everything_can_be_reached_and_named(page, fake):
    ask(page, "빵?")
    finished(page)
    named = "node.ariaLabel || node.labels?.length || node.textContent.trim() || node.hidden"
    controls = "[...document.querySelectorAll('button, input, select, textarea')]"
    assert page.evaluate(f"{controls}.filter((node) => !({named})).map((node) => node.outerHTML)") == []
    page.focus("#box")
    page.keyboard.press("Shift+Tab")
    expect(page.locator(".assistant .retry")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.locator(".assistant .copy").click()
    expect(page.locator("#toasts")).to_have_text("복사했습니다.")


def test_the_page_of_the_real_server(browser, parrot_gguf):
    with serving(parrot_gguf) as served:
        context, seen = new_context(browser, f"http://127.0.0.1:{served.port}/")
        page = visit(context)
        expect(page.locator("#model")).to_have_text(NAME)
        ask(page, "안녕?")
        expect(page.locator(answers)).to_have_text("안녕하세요! 저는 앵무새예요 🙂")
        expect(page.locator(".assistant strong")).to_have_text("앵무새")
        expect(page.locator(".usage")).to_contain_text("토큰")
        expect(page.locator(".note")).to_have_count(0)
        page.evaluate("document.querySelector('#box').value = '길어요 '.repeat(20_000)")
        page.press("#box", "Enter")
        expect(page.locator("#problem")).to_contain_text("너무 길어서")
        context.close()
    assert not seen
