"""Small models and tokenizers made from config, shared by tests; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma4Config,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4Config,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5Config,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
)

from covrl.generation.engine import TorchGenerator
from covrl.generation.proof import prove_decoding
from covrl.models.model import LanguageModel
from covrl.models.proof import Trial, ordinary_text, prove_scoring

FAMILIES = ["qwen2", "qwen3", "llama", "mistral", "gpt2", "gemma2"]
WITH_VISION = ["gemma3", "gemma4", "llama4", "mistral3", "qwen2.5-vl", "qwen3-vl", "qwen3.5"]

TEXTS = [
    "What is 12 + 30? The sum is 42.</think>\n<answer>42</answer>",
    "<think>\nFirst add the tens, then the ones.</think>\n\nLaw: the contract is void.",
    "a > b, b >\n c; x<y; list<item> </thing> naïve café ☕ 数学",
]


def byte_tokenizer(vocabulary: int = 400, bos: bool = False, added: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the spot; it merges ``>`` with a newline, as those of real models do.

    ``added``: by a token that is not of the BPE but beside it.
    """
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken("<eos>", special=True), AddedToken("<bos>", special=True)]
    inner.train_from_iterator(
        TEXTS * 4, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=special)
    )
    if added:
        inner.add_tokens([AddedToken(">\n", normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", bos_token="<bos>", clean_up_tokenization_spaces=False
    )
    if bos:
        from tokenizers.processors import TemplateProcessing

        fast.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", fast.bos_token_id)]
        )
    return fast


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """A sentencepiece-like BPE with ``▁`` for spaces and byte fallback."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    )
    special = [AddedToken(t, special=True) for t in ("<unk>", "<eos>")] + [
        AddedToken(f"<0x{i:02X}>") for i in range(256)
    ]
    inner.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=700, special_tokens=special))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character and the newline."""
    letters = [chr(c) for c in range(32, 127)] + ["\n"]
    inner = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["<unk>", "<eos>", *letters])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "bytes with bos": lambda: byte_tokenizer(bos=True),
    "metaspace": metaspace_tokenizer,
    "characters": character_tokenizer,
}


def save_tiny(family: str, folder: Path | str, **extra: Any) -> None:
    """Write a :func:`tiny` model of one token a character, and its tokenizer, as a user's model folder."""
    tokenizer = character_tokenizer()
    make = tiny_with_vision if family in WITH_VISION else tiny
    make(family, len(tokenizer), **extra).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny(family: str, vocabulary: int = 97, seed: int = 0, **extra: Any) -> Any:
    """A two-layer model of a family, with weights large enough that its distributions are not flat."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **extra,
    }
    if family == "gpt2":
        config = GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            vocab_size=vocabulary,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        return GPT2LMHeadModel(config).eval()
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(head_dim=8, sliding_window=8, **size)).eval()
    if family == "mistral":  # every layer attends to a window that is shorter than the tests' rows
        size["sliding_window"] = 8
    if family == "qwen3":
        size["head_dim"] = 8
    classes = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }
    config_class, model_class = classes[family]
    return model_class(config_class(**size)).eval()


def trial_of(model: LanguageModel, longest: int = 96) -> Trial:
    """A proof of the model's paths on rows of up to ``longest`` tokens, not made yet."""
    size = model.model.get_input_embeddings().weight.shape[0]
    return Trial.of(model, ordinary_text(character_tokenizer(), size), longest)


def prove(model: LanguageModel, longest: int = 96) -> list[str]:
    """Prove the paths of scoring; what is said of them."""
    return prove_scoring(trial_of(model, longest))


def prove_engine(engine: TorchGenerator, longest: int = 96) -> list[str]:
    """Prove how an engine decodes; what is said of it. Its model's attention stays as it is."""
    from covrl.models.attention import NAME

    shared = engine.model.config._attn_implementation == NAME
    if shared:
        engine.model.config._attn_implementation = "eager"
    model = LanguageModel(engine.model)
    trial = trial_of(model, longest)
    trial.model.paths = trial.model.paths._replace(shared=shared)
    return prove_decoding(engine, trial)


def tiny_with_vision(family: str, vocabulary: int = 97, seed: int = 0) -> Any:
    """A two-layer text model of a family with a one-layer vision tower beside it, as the family's checkpoints have."""
    torch.manual_seed(seed)
    text: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = sizes | {"image_size": 28, "patch_size": 14}
    qwen: dict[str, Any] = {"depth": 1, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
    qwen["num_heads"] = 2
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    windows = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    configs = {
        "gemma3": lambda: Gemma3Config(text_config=text | windows, vision_config=tower, mm_tokens_per_image=4),
        "gemma4": lambda: Gemma4Config(
            text_config=text
            | windows
            | {"global_head_dim": 8, "vocab_size_per_layer_input": vocabulary, "pad_token_id": 0}
            | {"final_logit_softcapping": 2.0},
            vision_config=sizes | {"head_dim": 8, "num_key_value_heads": 2, "patch_size": 14},
        ),
        "llama4": lambda: Llama4Config(
            text_config=text | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48},
            vision_config=tower | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        ),
        "mistral3": lambda: Mistral3Config(
            text_config=text | {"model_type": "mistral", "head_dim": 8},
            vision_config=tower | {"model_type": "pixtral", "head_dim": 8},
        ),
        "qwen2.5-vl": lambda: Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope}, vision_config=qwen | {"fullatt_block_indexes": [0]}
        ),
        "qwen3-vl": lambda: Qwen3VLConfig(
            text_config=text | {"head_dim": 8, "rope_parameters": rope},
            vision_config=qwen | {"deepstack_visual_indexes": [0]},
        ),
        "qwen3.5": lambda: Qwen3_5Config(
            text_config=text
            | {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
            | {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
            | {"layer_types": ["linear_attention", "full_attention"]},
            vision_config=qwen | {"deepstack_visual_indexes": []},
        ),
    }
    return AutoModelForImageTextToText.from_config(configs[family]()).eval()
