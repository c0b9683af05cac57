"""Log-likelihoods by token ids: what such back ends share, and our own network's, which reads nothing twice.

Texts with a common beginning become a tree. A row of a batch holds one, each token once, at the position that it has in
its text, seeing its ancestors only (token trees: Miao et al., 2024, arXiv:2305.09781). The head is applied only where a
scored token follows. Texts longer than the context lose their beginning, as in lm-eval's own Hugging Face back end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from chatbaker.errors import ChatBakerError
from chatbaker.infer.local import shared_prefix
from chatbaker.log import say
from chatbaker.model.weights import load_model
from chatbaker.rundir import read_json
from chatbaker.tokens.bpe import load_tokenizer

Text = tuple[list[int], list[int]]  # what is read; the scored tokens, of which the last follows the last that is read
Score = tuple[float, bool]  # log-likelihood in nats; whether each scored token was the most likely one
ROW = 512  # tokens of a tree at most: the mask grows with their square
BUDGET = {"cpu": 1024, "cuda": 65_536, "mps": 8192}  # tokens of a batch if no size is given; halved when out of memory


@dataclass
class Tree:
    """Texts that begin alike. branches: (nodes above, tokens). wanted: number of the text, its nodes, scored tokens."""

    size: int = 0
    branches: list[tuple[list[int], list[int]]] = field(default_factory=list)
    wanted: list[tuple[int, list[int], list[int]]] = field(default_factory=list)


def grow(texts: Sequence[Text]) -> list[Tree]:
    """Trees over all texts, the largest first. A text joins where that saves a quarter of it."""
    trees: list[Tree] = []
    before: list[int] = []
    for number in sorted(range(len(texts)), key=lambda i: texts[i][0]):
        ids, targets = texts[number]
        shared = shared_prefix(before, ids)
        new = len(ids) - shared
        if not trees or shared * 4 < len(ids) or (new and trees[-1].size + new > ROW):
            trees.append(Tree())
            shared, new = 0, len(ids)
        tree = trees[-1]
        above = tree.wanted[-1][1][:shared] if shared else []
        tree.wanted.append((number, above + list(range(tree.size, tree.size + new)), targets))
        if new:
            tree.branches.append((above, ids[shared:]))
        tree.size += new
        before = ids
    return sorted(trees, key=lambda tree: -tree.size)


class TokenLM(TemplateLM):
    """A model that scores token ids. prefix: the token that an empty context stands for."""

    name: str
    context: int
    prefix: int
    ids_of: Callable[[str, bool], list[int]]  # of a text; where True, with what this model puts around one

    def score(self, texts: list[Text]) -> Iterator[tuple[int, Score]]:
        """(number of the text, its score) in any order, as they are known."""
        raise NotImplementedError

    @property
    def eot_token_id(self) -> int:
        return self.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.ids_of(string, add_special_tokens is not False)

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **_: Any) -> list[Score]:
        texts, cut = [], 0
        for _, context, continuation in requests:
            whole = (context or [self.prefix]) + continuation
            cut += len(whole) > self.context + 1
            ids = whole[-(self.context + 1) :][:-1]
            texts.append((ids, continuation[-len(ids) :]))
        if cut:
            say(f"{cut:,} of {len(requests):,} texts are longer than the context of {self.context:,}: beginnings cut")
        scores: list[Score] = [(0.0, True)] * len(texts)
        for number, score in self.score(texts):
            scores[number] = score
            if requests[number][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[number][0], score)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix, self.context, 1)
            scores = self._loglikelihood_tokens([(None, *make_disjoint_window(window)) for window in windows])
            totals.append(sum(score for score, _ in scores))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


class TorchLM(TokenLM):
    """A model folder of our own network: fp32, or bf16 on a GPU where the weights are. batch_size 0: by tokens."""

    def __init__(self, folder: Path, device: str, batch_size: int = 0) -> None:
        super().__init__()
        self.model = load_model(folder, device).eval()
        if device == "cpu" or self.model.lm_head.weight.dtype != torch.bfloat16:
            self.model.float()
        tokenizer = load_tokenizer(folder)
        self.ids_of = lru_cache(4096)(lambda text, special: tokenizer.encode(text, add_special_tokens=special).ids)
        path = folder / "tokenizer_config.json"
        named = [(read_json(path) if path.exists() else {}).get(key) for key in ("bos_token", "eos_token")]
        names = [one["content"] if isinstance(one, dict) else one for one in named]
        self.prefix = next((tokenizer.token_to_id(one) or 0 for one in names if one), 0)
        self.context, self.batch_size = self.model.config.seq_len, batch_size
        self._device = torch.device(device)
        self.budget = BUDGET[self._device.type]
        self.name = f"{folder.resolve().name} (PyTorch, {device})"

    def score(self, texts: list[Text]) -> Iterator[tuple[int, Score]]:
        trees = grow(texts)
        while trees:
            alike = next((i for i, tree in enumerate(trees) if tree.size * 5 < trees[0].size * 4), len(trees))
            rows = self.batch_size or max(1, min(self.budget // trees[0].size, alike))  # little padding
            try:
                scores = self._forward(trees[:rows])
            except torch.OutOfMemoryError:
                if rows == 1 or self.batch_size:
                    hint = "Use --device cpu, or a smaller eval.batch_size"
                    raise ChatBakerError("the GPU's memory is too small", self.name, hint) from None
                self.budget //= 2
                continue
            yield from scores
            trees = trees[rows:]

    @torch.inference_mode()
    def _forward(self, trees: list[Tree]) -> list[tuple[int, Score]]:
        T, at = trees[0].size, 0
        ids_BT, positions_BT = torch.zeros(2, len(trees), T, dtype=torch.long)
        mask_BTT = torch.eye(T, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself, and nothing it
        triangle_TT = torch.ones(T, T, dtype=torch.bool).tril()
        nodes, targets, scores = [], [], []
        for row, tree in enumerate(trees):
            start = 0
            for above, ids in tree.branches:
                end = start + len(ids)
                ids_BT[row, start:end] = torch.tensor(ids)
                positions_BT[row, start:end] = torch.arange(len(above), len(above) + len(ids))
                mask_BTT[row, start:end, above] = True
                mask_BTT[row, start:end, start:end] = triangle_TT[: len(ids), : len(ids)]
                start = end
            for _, path, scored in tree.wanted:
                nodes += [row * T + node for node in path[len(path) - len(scored) :]]
                targets += scored
        branched = any(len(tree.branches) > 1 for tree in trees)  # plain texts have causal attention, which is faster
        seen = (positions_BT.to(self._device), mask_BTT[:, None].to(self._device)) if branched else None
        hidden_ND = self.model(ids_BT.to(self._device), tree=seen).flatten(0, 1)
        scored_N = torch.tensor(targets, device=self._device)
        unique_U, back_N = torch.tensor(nodes).unique(return_inverse=True)  # choices share the node before them
        back_N, chances_N = back_N.to(self._device), torch.empty(len(nodes), device=self._device)
        best_N = torch.empty(len(nodes), dtype=torch.bool, device=self._device)
        step = max(1, self.budget * 4096 // self.model.config.vocab_size)
        for first in range(0, len(unique_U), step):
            logits_UV = self.model.logits(hidden_ND[unique_U[first : first + step].to(self._device)]).float()
            at_N = ((back_N >= first) & (back_N < first + step)).nonzero().flatten()
            row_N, target_N = back_N[at_N] - first, scored_N[at_N]
            said_N = logits_UV[row_N, target_N]
            best_N[at_N] = said_N == logits_UV.amax(-1)[row_N]
            chances_N[at_N] = said_N - logits_UV.logsumexp(-1)[row_N]
        chances, best = chances_N.tolist(), best_N.tolist()
        for number, _, scored in (one for tree in trees for one in tree.wanted):
            span = slice(at, at := at + len(scored))
            scores.append((number, (sum(chances[span]), all(best[span]))))
        return scores
