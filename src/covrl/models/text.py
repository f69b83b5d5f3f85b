"""The text part of a model: its config, its trunk, its weights. Most models have no other.

A model with a vision (or audio) part keeps the numbers of its text model in a config of their own, and the text model
as one module among several. It is trained on text: the other parts are not run, take no gradient and are saved as they
were read.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from covrl.errors import UserError


def text_config(config: Any) -> Any:
    """The config that has the text model's numbers: the config itself, or its part for text.

    Example:
        >>> text_config(AutoConfig.from_pretrained("google/gemma-3-4b-it")).vocab_size
        262208
    """
    return config.get_text_config(decoder=True)


def vocabulary(model: Any) -> int:
    """How many logits a position has."""
    return int(text_config(model.config).vocab_size)


def context_length(config: Any) -> int | None:
    """Most tokens that a row may have, where the config says."""
    return getattr(text_config(config), "max_position_embeddings", None)


def cache_numbers(config: Any) -> int:
    """Numbers that one token leaves in the key-value cache, over all layers.

    An upper bound where layers keep fewer: those with a window, those that share another layer's keys, and those that
    have a state instead of keys.
    """
    text = text_config(config)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width


def rope_switches(config: Any) -> set[int]:
    """Row lengths from which on a model rotates all keys of a row by other frequencies, those before included."""
    text = text_config(config)
    ropes = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    found = set()
    for rope in (ropes, *(r for r in ropes.values() if isinstance(r, dict))):
        if rope.get("rope_type", rope.get("type")) in ("longrope", "dynamic"):
            own = rope.get("original_max_position_embeddings")
            found.add(own or getattr(text, "original_max_position_embeddings", None) or text.max_position_embeddings)
    return {int(length) for length in found}


def has_more_than_text(model: Any) -> bool:
    """Whether a model has parts beside its text model."""
    return text_config(model.config) is not model.config


def trunk(model: Any) -> Any:
    """The module from token ids to last hidden states, which is called without the output layer.

    The decoder of a model with more parts: its wrapper would only merge images into what the decoder reads.
    """
    if model.base_model is not model and not has_more_than_text(model):
        return model.base_model
    decoder = model.get_decoder()
    if decoder is not model:
        return decoder
    return next((part for part in model.children() if isinstance(part, PreTrainedModel)), model)


def freeze_other_parts(model: Any) -> None:
    """Let no weight outside the text model and its output layer take a gradient."""
    if not has_more_than_text(model):
        return
    modules = (trunk(model), model.get_input_embeddings(), model.get_output_embeddings())
    text = {id(p) for module in modules if isinstance(module, nn.Module) for p in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in text:
            parameter.requires_grad_(False)


TEXT_ALONE = ("llama4",)
"""Types of which the text model alone is read: transformers' class with all parts fails on text without an image
(CONFIRMED with 5.24). What is saved is then a text model too."""


def model_class(config: Any, source: str) -> Any:
    """What reads the model of a config: of one with a vision part the class that has all its parts.

    For some of them transformers' class for causal language models is the text model alone, which would be saved
    without the rest; for others there is none.

    Raises:
        UserError: it is no language model that continues text.
    """
    mapping, kind = AutoModelForImageTextToText._model_mapping, type(config)
    whole = kind in mapping and text_config(config) is not config and not config.is_encoder_decoder
    if whole and config.model_type not in TEXT_ALONE:
        return mapping[kind]
    if kind not in AutoModelForCausalLM._model_mapping:
        raise UserError(
            f"model.path: {source!r} is a model of type {config.model_type!r}, which continues no text: it must be a "
            "causal language model"
        )
    return AutoModelForCausalLM


def left_out(model: Any, config: Any) -> list[str]:
    """What is to be said where a model of ``config`` was read without its other parts."""
    if type(model.config) is type(config):
        return []
    return [
        f"model {type(model).__name__}: the text model alone is read, and results are saved without the other parts"
    ]
