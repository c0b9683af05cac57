"""A network as a folder that `transformers`, vLLM and lm-eval load as it is: the hand-over between stages.

config.json, model.safetensors with Hugging Face names, the tokenizer's files and generation_config.json.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from chatbaker.errors import ChatBakerError
from chatbaker.model.config import read_config, to_hf
from chatbaker.model.llama import Llama
from chatbaker.rundir import new_folder, read_json, write_json


def save_model(model: Llama, folder: Path, tokenizer: Path, end_of_text: int, end_of_turn: int) -> None:
    """Write the folder under a temporary name and rename it. tokenizer: a folder with its files; the rest: ids."""
    state = model.state_dict()
    if model.config.tied:
        assert model.lm_head.weight is model.model.embed_tokens.weight, "a head of its own would be lost"
        state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    generation = {
        "bos_token_id": end_of_text,
        "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text,
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.95,
        "top_k": 20,
        "repetition_penalty": 1.2,
    }
    limits = {"model_max_length": model.config.seq_len}
    with new_folder(folder) as part:
        try:
            save_file({k: v.contiguous() for k, v in state.items()}, part / "model.safetensors", {"format": "pt"})
        except SafetensorError as error:  # hides the system's error in its text
            hint = "Free some space if the disk is full, and type the same command again"
            raise ChatBakerError(f"the weights could not be written ({error})", str(folder), hint) from None
        write_json(part / "config.json", to_hf(model.config, dtype, end_of_text, end_of_turn))
        write_json(part / "generation_config.json", generation)
        write_json(part / "tokenizer_config.json", read_json(tokenizer / "tokenizer_config.json") | limits)
        shutil.copyfile(tokenizer / "tokenizer.json", part / "tokenizer.json")


def load_model(folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Llama:
    """A model from its folder, one tensor at a time (memory: one copy). dtype None keeps the file's own.

    Raises ChatBakerError for a missing, cut or foreign file.
    """
    config = read_config(folder)
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else []
    files = [folder / name for name in names] or [folder / "model.safetensors"]
    state: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt", device=device) as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    if name.endswith("rotary_emb.inv_freq"):
                        continue  # older transformers stored the table; it carries no information
                    state[name] = file.get_tensor(name).to(dtype) if dtype else file.get_tensor(name)
        except FileNotFoundError:
            raise ChatBakerError("no such file", str(path)) from None
        except SafetensorError as error:
            raise ChatBakerError(f"broken weights file ({error})", str(path), "Copy or download it again") from None
    with torch.device("meta"):
        model = Llama(config)
    if config.tied:
        state["lm_head.weight"] = state.get("model.embed_tokens.weight", torch.empty(0))
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ChatBakerError(f"weights do not fit config.json ({error})", str(folder)) from None
    if config.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model
