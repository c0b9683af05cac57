from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from chatbaker.chat import terminal
from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import Sampling
from tests.chat.conftest import SAYING
from tests.infer import markov

GREEDY = Sampling(temperature=0)


class Pipe(io.StringIO):
    """Standard input that is no terminal."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.buffer = io.BytesIO(data)


def chat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path, data: str | bytes
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", Pipe(data if isinstance(data, bytes) else data.encode()))
    status = terminal.run(model=str(model), device="cpu", sampling=GREEDY)
    out = capsys.readouterr()
    return status, out.out, out.err


def test_each_line_of_a_pipe_is_answered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parrot_gguf: Path
) -> None:
    status, out, err = chat(capsys, monkeypatch, parrot_gguf, "\ufeff안녕\n\n  \nhello\r\n마지막 줄")
    assert (status, out, err) == (0, f"{SAYING}\n" * 3, "")


def test_no_input_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parrot_gguf: Path
) -> None:
    assert chat(capsys, monkeypatch, parrot_gguf, "")[:2] == (0, "")


def test_bad_lines_are_named_and_the_others_answered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parrot_gguf: Path
) -> None:
    lines = [b"\xff\xff", b"/fly", b"x" * 3000, b"hi", b"/exit", b"never"]
    status, out, err = chat(capsys, monkeypatch, parrot_gguf, b"\n".join(lines))
    assert status == 1
    assert out == f"{SAYING}\n"
    problems = err.splitlines()
    assert len(problems) == 3
    assert "line 1: neither UTF-8 nor CP949" in problems[0]
    assert "line 2: no command /fly" in problems[1]
    assert "line 3" in problems[2]
    assert "tokens long" in problems[2]


def test_lines_in_cp949_are_understood(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parrot_gguf: Path, tmp_path: Path
) -> None:
    talk = tmp_path / "talk.jsonl"
    lines = "또 봐요, 똠방각하\n".encode("cp949") + f"네 😀\n/save {talk}\n".encode()
    assert chat(capsys, monkeypatch, parrot_gguf, lines)[0] == 0
    saved = talk.read_text(encoding="utf-8")
    assert "또 봐요, 똠방각하" in saved
    assert "네 😀" in saved


def test_dropped_turns_are_announced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parrot_gguf: Path
) -> None:
    _, _, err = chat(capsys, monkeypatch, parrot_gguf, f"{'가' * 30}\n{'나' * 30}\n{'다' * 30}\n")
    assert "oldest messages were dropped" in err


def test_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parrot_gguf: Path, tmp_path: Path
) -> None:
    talk = tmp_path / "이야기.jsonl"
    lines = [
        "/help", "/set", "/set max-new-tokens 3", "/set temperature=0.7", "/system 짧게", "하나", "/stats", "/retry",
        f"/save {talk}", "/undo", f"/load {talk}", "/system none", "/reset",
    ]  # fmt: skip
    status, out, err = chat(capsys, monkeypatch, parrot_gguf, "\n".join(lines))
    assert status == 0
    short = b"".join(markov.cut(SAYING)[:3]).decode(errors="ignore")
    assert out == f"{short}\n{short}\n"
    assert markov.conversation(talk) == [{"role": "system", "content": "짧게"}, *markov.messages("하나", short)]
    for expected in ("/retry", "max_new_tokens=512", "max_new_tokens=3", "temperature=0.7", '"finish_reason": "length"',
                     "forgotten: 하나", "loaded 1 ", "system: none", "a new conversation"):  # fmt: skip
        assert expected in err


@pytest.mark.parametrize(
    "line", ["/set top_p 2", "/set top_k many", "/set wings 2", "/retry", "/undo", "/save", "/load"]
)
def test_a_command_that_cannot_be_done_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, parrot_gguf: Path, line: str
) -> None:
    status, out, err = chat(capsys, monkeypatch, parrot_gguf, line)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1


def test_a_question_is_answered_and_debug_is_json(capsys: pytest.CaptureFixture[str], parrot_gguf: Path) -> None:
    assert terminal.run("안녕", model=str(parrot_gguf), device="cpu", sampling=GREEDY, debug=True) == 0
    out = capsys.readouterr()
    assert out.out == f"{SAYING}\n"
    report = json.loads(out.err)
    assert [step["token"] for step in report["steps"]][-1] == "<|im_end|>"
    assert all(len(step["candidates"]) == terminal.CANDIDATES for step in report["steps"])
    assert report["usage"]["completion_tokens"] == len(report["steps"]) - 1
    assert report["speed"]["decode_tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "no-such-folder"}, "no-such-folder: no such model"),
        ({"model": "nobody/nothing"}, "nobody/nothing: no such folder, and not to be had"),
        ({"device": "tpu"}, "unknown device"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"quantize": "q3"}, "unknown quantization"),
    ],
)
def test_what_cannot_be_opened_is_one_plain_line(
    monkeypatch: pytest.MonkeyPatch, parrot_gguf: Path, options: dict[str, str], message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ChatBakerError, match=message) as raised:
        terminal.run("x", **({"model": str(parrot_gguf)} | options))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed"])
def test_sampling_options_have_bounds(name: str) -> None:
    with pytest.raises(ChatBakerError, match=name):
        Sampling(**{name: -1})


def test_chat_imports_nothing_heavy(parrot_gguf: Path) -> None:
    code = f"""
import sys
from chatbaker.chat.terminal import run
status = run("hi", model={str(parrot_gguf)!r}, device="cpu")
heavy = {{"torch", "transformers", "openai", "numpy", "gguf", "huggingface_hub", "tokenizers", "safetensors"}}
print(sorted(heavy & set(sys.modules)))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    ).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("", ""),
        ("가나다", ""),
        ("가나다\n라", ""),
        ("가나다\n\n라", "가나다\n\n"),
        ("하나\n\n```py\na\n\nb", "하나\n\n"),
        ("```\na\n\n```\n\n끝", "```\na\n\n```\n\n"),
        ("````\n```\n\n", ""),
        ("~~~\n```\n\n~~~\n \n", "~~~\n```\n\n~~~\n \n"),
    ],
)
def test_finished_blocks_of_markdown(text: str, done: str) -> None:
    assert text[: terminal.finished_blocks(text)] == done
