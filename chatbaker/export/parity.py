"""The gate before a model leaves the house: llama.cpp reads the GGUF file as training read the folder.

Token ids of awkward lines and of whole conversations, through the template inside the GGUF file, must be equal. The
most likely next token is compared at every position and recorded, as rounding may tip a near tie.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import torch
import xllamacpp

from chatbaker.errors import ChatBakerError
from chatbaker.export.hf import chat_template
from chatbaker.model.weights import load_model
from chatbaker.rundir import read_json
from chatbaker.tokens import dialog
from chatbaker.tokens.bpe import load_tokenizer

_TEXTS = read_json(Path(__file__).with_name("probe.json"))
LINES: list[str] = _TEXTS["lines"]
CHATS: list[list[dialog.Message]] = _TEXTS["chats"]
FLOOR = {"bf16": 0.9, "q8_0": 0.8, "q4_0": 0.3}
"""Below this share of equal top tokens the weights are laid out wrongly: even random ones, all near ties, give more."""


class Probe:
    """A GGUF file opened in llama.cpp, to ask what it makes of a text in NFC. Raises ChatBakerError for other files."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ChatBakerError("no such file", str(path))
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
        params.warmup, params.verbosity = False, -1
        try:
            self.server = xllamacpp.Server(params)
        except RuntimeError:
            raise ChatBakerError("llama.cpp cannot open it: not a GGUF file, or cut short", str(path)) from None

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        # A connection each: the server hangs up on one that is idle while the other side computes.
        with closing(HTTPConnection(self.server.listening_address.rpartition("://")[2])) as http:
            http.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer: dict[str, Any] = json.loads(http.getresponse().read())
        assert "error" not in answer, answer
        return answer

    def tokens(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; with `special`, special tokens written in it count as such."""
        return list(self._ask("/tokenize", {"content": text, "add_special": False, "parse_special": special})["tokens"])

    def chat_tokens(self, messages: Sequence[dialog.Message]) -> list[int]:
        """Token ids of a conversation up to where the next answer begins, by the template inside the file."""
        return self.tokens(self._ask("/apply-template", {"messages": list(messages)})["prompt"], special=True)

    def top1(self, ids: Sequence[int]) -> list[int]:
        """The most likely next token after each position of `ids`, one entry each."""
        # Pinned to a plain letter, as half a character is held back; the figures are those before the pin.
        options = {"n_predict": 1, "n_probs": 1, "temperature": 0, "logit_bias": [[self.tokens("a")[0], 1e6]]}
        prompts = (list(ids[: end + 1]) for end in range(len(ids)))  # all but the last token are still in the cache
        answers = (self._ask("/completion", options | {"prompt": prompt}) for prompt in prompts)
        return [answer["completion_probabilities"][0]["top_logprobs"][0]["id"] for answer in answers]


def compare(folder: Path, gguf: Path, dtype: str) -> dict[str, Any]:
    """Hold a GGUF file against its model folder, computed in fp32: a row of parity.json.

    top1: share of positions with the same most likely token. Raises ChatBakerError where ids differ or top1 is too low.
    """
    tokenizer = load_tokenizer(folder)
    template = dialog.detect(chat_template(folder), tokenizer.get_vocab())
    model, probe = load_model(folder).eval(), Probe(gguf)
    texts = []
    for line in LINES:
        ids = tokenizer.encode(line, add_special_tokens=False).ids
        texts.append((line, ids, probe.tokens(unicodedata.normalize("NFC", line))))
    for chat in CHATS:
        segments = template.segments(dialog.clean_messages(chat), generate=True)
        texts.append((chat[-1]["content"], dialog.encode(tokenizer, segments)[0], probe.chat_tokens(chat)))
    for text, ids, other in texts:
        if ids != other:
            what = f"llama.cpp reads {text!r} as tokens {other}, training as {ids}"
            raise ChatBakerError(what, str(gguf), "Export is refused: the tokenizer or its chat template differs")
    same = total = 0
    for _, ids, _ in texts:
        ids = ids[: model.config.seq_len - 1]
        with torch.inference_mode():
            expected = model.logits(model(torch.tensor([ids]), dtype=torch.float32))[0].argmax(-1).tolist()
        same += sum(a == b for a, b in zip(expected, probe.top1(ids), strict=True))
        total += len(ids)
    top1 = round(same / total, 4)
    if top1 < FLOOR[dtype]:
        what = f"only {top1:.0%} of its most likely tokens are those of the folder"
        raise ChatBakerError(what, str(gguf), f"Export is refused: {dtype} gives {FLOOR[dtype]:.0%} at the least")
    size = gguf.stat().st_size
    return {"file": gguf.name, "dtype": dtype, "bytes": size, "texts": len(texts), "tokens": total, "top1": top1}
