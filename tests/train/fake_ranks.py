"""One step of the first of many processes, with tensors that hold no numbers: `python -m tests.train.fake_ranks WORLD
RECIPE [OVERRIDE ...]` prints the bytes that are held at its peak, in all, and what `plan` says of them, as JSON.

The others are a fake process group, which answers every exchange at once.
"""

import json
import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from chatbaker.model.llama import Llama
from chatbaker.plan import memory_per_rank
from chatbaker.recipe import load
from chatbaker.tokens.loader import Batch
from chatbaker.train import loop
from chatbaker.train.optim import build_optimizers
from chatbaker.train.parallel import prepare, start
from chatbaker.train.pretrain import network


class Rows:
    """A process's share of any batch."""

    def __init__(self, rows, seq_len):
        self.rows, self.shape = rows, (rows, seq_len)

    def batch(self, step, rank, world):
        return Batch(*(np.zeros(self.shape, np.int64) for _ in range(3)))


def main() -> None:
    size, name, *overrides = sys.argv[1:]
    os.environ.update(RANK="0", WORLD_SIZE=size, LOCAL_RANK="0")
    recipe = load(name, ["pretrain.compile=false", "pretrain.precision=bf16", *overrides])
    section, cpu = recipe.pretrain, torch.device("cpu")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=int(size))
    with torch.device("meta"):
        model = Llama(network(recipe, recipe.tokenizer.vocab_size))
    prepare(model, section, cpu, recipe.parallel)
    rows = section.batch_tokens // recipe.model.seq_len // int(size)
    loop.clip = lambda *given: 0.0  # there is no number to compare
    loop.add_up = lambda tensor: 1
    with FakeTensorMode(allow_non_fake_inputs=True):
        start(model, cpu, recipe.seed)
        parameters, optimizers = list(model.parameters()), build_optimizers(model, section)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for optimizer in optimizers:  # makes their state
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tracker = MemTracker()
        tracker.track_external(model, *optimizers)
        plain = loop.last_micro_batch
        loop.last_micro_batch = lambda *given: (tracker.reset_mod_stats(), plain(*given))
        with tracker:
            loop.train_step(
                model, Rows(rows, recipe.model.seq_len), section, 0, torch.bfloat16, optimizers, parameters, 1.0, False
            )
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    planned = memory_per_rank(
        recipe.model,
        recipe.tokenizer.vocab_size,
        section.micro_batch,
        section.optimizer,
        "bf16",
        section.recompute,
        recipe.parallel.shard or int(size),
        device="cpu",
        compiled=False,
        accumulation=rows // section.micro_batch,
    )
    print(json.dumps({"measured": peak["Total"], "planned": sum(planned.values()), "parts": planned}))


if __name__ == "__main__":
    main()
