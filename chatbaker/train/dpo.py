"""Stage `dpo`: a chat model and pairs of answers -> one that prefers the chosen ones, by the same loop.

Rafailov et al., 2023, arXiv:2305.18290. A pair's loss is -log sigmoid(margin), and its margin beta times how much more
the log-probability of the chosen answer has risen over the reference than that of the rejected one. The reference is
the model that the stage starts from: its log-probabilities are computed once, before the first step.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chatbaker.dist import add_up, world
from chatbaker.log import progress
from chatbaker.model.llama import Llama
from chatbaker.model.loss import IGNORE, SLICE, token_losses
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir
from chatbaker.tokens.loader import Batch
from chatbaker.tokens.preferences import load_pairs
from chatbaker.train.evaluate import Sets, bits_per_byte
from chatbaker.train.loop import Objective, forward
from chatbaker.train.parallel import gathered
from chatbaker.train.sft import tune


def run(recipe: Recipe, run: RunDir) -> None:
    """Tune sft/model, or go on from the newest checkpoint; ends with dpo/model."""
    objective = partial(preference, recipe.dpo.beta)
    tune("dpo", "sft", load_pairs, recipe, run, objective, refer, partial(score, objective))


def log_probabilities(hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """log p(target) of the tokens with loss [N], fp32. The backward pass computes the logits again, slice by slice."""
    weight, trained = weight_VD.to(hidden_BTD.dtype), targets_BT != IGNORE

    def of_slice(hidden: Tensor, targets: Tensor) -> Tensor:
        return -token_losses(hidden @ weight.T, targets)

    slices = zip(hidden_BTD[trained].split(SLICE), targets_BT[trained].split(SLICE), strict=True)
    return torch.cat([checkpoint(of_slice, hidden, targets, use_reentrant=False) for hidden, targets in slices])


def preference(
    beta: float,
    hidden: Tensor,
    weight: Tensor,
    compiled: bool,
    count: int,
    targets: Tensor,
    docs: Tensor,
    reference: Tensor,
) -> dict[str, Tensor]:
    """The loop's objective, summed over the pairs in the rows. accuracy: of pairs whose margin is above zero."""
    trained = targets != IGNORE
    gain = (log_probabilities(hidden, weight, targets) - reference[trained]) * (docs % 2 * 2 - 1)[trained]
    place = (docs - 1) // 2 + docs.shape[1] * torch.arange(len(docs), device=docs.device)[:, None]
    pairs, pair = place[trained].unique(return_inverse=True)
    margins = beta * gain.new_zeros(len(pairs)).index_add(0, pair, gain)
    right = (margins > 0).sum()
    return {"loss": -F.logsigmoid(margins).sum(), "margin": margins.sum(), "accuracy": right}


@torch.no_grad()
def refer(model: Llama, batch: Batch, rows: int, dtype: torch.dtype) -> Batch:
    """The batch with the model's log-probabilities; each process computes its share, `rows` rows at a time."""
    table, first, stride = torch.zeros(batch.ids.shape), rows * world().rank, rows * world().size
    bar = nullcontext() if first else progress("dpo reference", len(table))
    with torch.compiler.set_stance("force_eager"), gathered(model), bar as shown:
        for start in range(first, len(table), stride):
            part = batch.take(slice(start, start + rows))
            hidden, targets, _ = forward(model, part, dtype)
            found = log_probabilities(hidden, model.lm_head.weight, targets)
            table[start : start + rows][torch.from_numpy(part.targets != IGNORE)] = found.cpu()
            if shown:
                shown.update(min(start + stride, len(table)))
    return replace(batch, reference=add_up(table).numpy())


@torch.no_grad()
def score(
    objective: Objective, model: Llama, sets: Sets, sizes: np.ndarray, dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Bits per byte of the chosen answers, with margin and accuracy of the pairs, per language."""
    result: dict[str, dict[str, float]] = {}
    for name, parts in sets.items():
        totals = torch.zeros(2)
        for part in parts[world().rank :: world().size]:
            hidden, *arrays = forward(model, part, dtype)
            sums = objective(hidden, model.lm_head.weight, False, part.trained, *arrays)
            totals += torch.stack([sums["margin"], sums["accuracy"]]).cpu()
        margin, right = (add_up(totals) / sum(part.valid for part in parts)).tolist()
        chosen = [replace(part, targets=np.where(part.docs % 2, part.targets, IGNORE)) for part in parts]
        result |= bits_per_byte(model, {name: chosen}, sizes, dtype)
        result[name] |= {"margin": round(margin, 5), "accuracy": round(right, 5)}
    return result
