"""A small model as a GGUF file, written as llama.cpp's converter writes one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import byte_tokenizer, tiny
from safetensors.torch import load_file, save_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
SIZE = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 256}


def write_llama(
    path: Path,
    quantised: bool = False,
    words: bool = True,
    extra: Mapping[str, Any] | None = None,
    pre: str = "gpt-2",
    theta: float = 10_000.0,
) -> Path:
    """A tiny Llama in ``path``; the folder with the same weights, which is its own beside it.

    ``quantised``: matrices in blocks of 8 bits, and the folder has what these blocks say. ``words``: with its
    tokenizer, which splits text the way that ``pre`` names. ``extra`` are more tensors; ``theta`` is its rope's.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize

    tokenizer = byte_tokenizer(added=False)
    model = tiny("llama", len(tokenizer), rope_parameters={"rope_type": "default", "rope_theta": theta}, **SIZE)
    folder = path.with_suffix("")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config, kept = model.config, load_file(folder / "model.safetensors")
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if words:
        _write_words(writer, tokenizer)
        writer.add_tokenizer_pre(pre)
    for name, weight in kept.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        turned = _as_llama_cpp(weight, heads.get(name.split(".")[-2], 0))
        if not quantised or weight.dim() < 2:
            writer.add_tensor(_name(name), turned.numpy())
            continue
        kind = GGMLQuantizationType.Q8_0
        blocks = quantize(turned.numpy(), kind)
        writer.add_tensor(_name(name), blocks, raw_dtype=kind)
        said = torch.from_numpy(dequantize(blocks, kind)).reshape(weight.shape)
        kept[name] = _as_transformers(said, heads.get(name.split(".")[-2], 0)).contiguous()
    for name, values in (extra or {}).items():
        writer.add_tensor(name, np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write_words(writer: Any, tokenizer: Any) -> None:
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = {**table["model"]["vocab"], **{token["content"]: token["id"] for token in table["added_tokens"]}}
    special = {token["id"] for token in table["added_tokens"] if token["special"]}
    words = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if ids[w] in special else 1 if w in table["model"]["vocab"] else 4 for w in words])
    writer.add_token_merges([" ".join(pair) for pair in table["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)


def _name(name: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in fixed:
        return f"{fixed[name]}.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _as_llama_cpp(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries and keys with the two halves of a rotation side by side, which transformers has apart."""
    if not heads:
        return weight
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()


def _as_transformers(weight: torch.Tensor, heads: int) -> torch.Tensor:
    if not heads:
        return weight
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
