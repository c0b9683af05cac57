"""LoRA (Hu et al., 2021, arXiv:2106.09685): a matrix W is used as W + alpha / rank * B A, and only A and B are trained.

Applied from outside: every matrix of the blocks gets an A [rank, inputs] and a B [outputs, rank] beside its weight, and
another `forward`. B starts as zero, so training starts from the network as it was. Merging takes all of it away again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbaker.errors import ChatBakerError
from chatbaker.model.llama import Linear, Llama
from chatbaker.recipe import Sft


class LoraLinear(Linear):
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_A.to(x.dtype))
        return Linear.forward(self, x) + F.linear(low, self.lora_B.to(x.dtype)) * self.scale


def attach(model: Llama, section: Sft, seed: int) -> None:
    """Freeze the network and give the blocks' matrices adapters, in place. Each process draws the same."""
    if section.precision == "fp8":
        raise ChatBakerError("adapters do not multiply in FP8", "precision", 'Take "bf16", or lora_rank = 0')
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in model.model.layers.modules():
        if isinstance(module, Linear):
            outputs, inputs = module.weight.shape
            start = torch.randn(section.lora_rank, inputs, generator=generator) * inputs**-0.5
            module.lora_A = nn.Parameter(start.to(module.weight))
            module.lora_B = nn.Parameter(module.weight.new_zeros(outputs, section.lora_rank))
            module.scale = section.lora_alpha / section.lora_rank
            module.__class__ = LoraLinear


@torch.no_grad()
def merge(model: Llama) -> None:
    """Add the adapters to the weights and take them away, in place."""
    for module in model.model.layers.modules():
        if isinstance(module, LoraLinear):
            module.weight += module.lora_B @ module.lora_A * module.scale
            del module.lora_A, module.lora_B
            module.__class__ = Linear
