"""A model whose every answer is known beforehand: a GGUF that is a table from the last token to the next one's logits.

Embeddings are one-hot, the blocks add nothing, so the head's matrix is the table. Its vocabulary is byte-level with
a few words of its own, cut where a character is not whole.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

from chatbaker.tokens.dialog import CHATML, SPECIAL_TOKENS

BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
VISIBLE = {b: chr(b) for b in BYTES} | {
    b: chr(0x100 + i) for i, b in enumerate(b for b in range(256) if b not in BYTES)
}
END = SPECIAL_TOKENS.index("<|im_end|>")
FIRST = len(SPECIAL_TOKENS) + 256


def byte_id(character: str) -> int:
    return len(SPECIAL_TOKENS) + ord(character)


def visible(data: bytes) -> str:
    return "".join(VISIBLE[byte] for byte in data)


def cut(text: str) -> list[bytes]:
    """Pieces of two bytes or more, no two alike, most of them ending within a character."""
    data, pieces, start = text.encode(), [], 0
    for end in range(1, len(data) + 1):
        if end - start >= 2 and data[start:end] not in pieces:
            pieces.append(data[start:end])
            start = end
    return [*pieces[:-1], pieces[-1] + data[start:]]


def write(path: Path, table: dict[int, dict[int, float]], pieces: list[bytes] = [], context: int = 512) -> Path:  # noqa: B006
    """table: last token -> {next token: logit}, 0 where nothing is said. pieces: tokens from number FIRST on."""
    tokens = [*SPECIAL_TOKENS, *(VISIBLE[byte] for byte in range(256)), *map(visible, pieces), visible(b" a")]
    dim, heads = -(-len(tokens) // 64) * 64, 1
    writer = GGUFWriter(str(path), "llama")
    writer.add_chat_template(CHATML.jinja)
    writer.add_context_length(context)
    writer.add_embedding_length(dim)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(dim // 64)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL_TOKENS) + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges([f"{visible(b' ')} a"])
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    head = np.zeros((len(tokens), dim), np.float32)
    for last, row in table.items():
        for following, logit in row.items():
            head[following, last] = logit / np.sqrt(dim)
    writer.add_tensor("token_embd.weight", np.eye(len(tokens), dim, dtype=np.float32))
    writer.add_tensor("output.weight", head)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(dim, np.float32))
    shapes = {"attn_q": (dim, dim), "attn_k": (64, dim), "attn_v": (64, dim), "attn_output": (dim, dim)}
    shapes |= {"ffn_gate": (32, dim), "ffn_up": (32, dim), "ffn_down": (dim, 32)}
    for name, shape in shapes.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def parrot(path: Path, text: str, ends: bool = True, context: int = 512) -> Path:
    """A model that says `text` to everything; where it does not end, over and over."""
    pieces = cut(text)
    numbers = [FIRST + i for i in range(len(pieces))]
    table = {
        a: {b: 40.0} for a, b in zip([byte_id("\n"), *numbers], [*numbers, END if ends else numbers[0]], strict=True)
    }
    return write(path, table, pieces, context)


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def conversation(path: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))["messages"]
    return found
