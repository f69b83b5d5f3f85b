"""A causal language model as the trainer sees it: ids to hidden states, and the projection to logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as hf_logging

from covrl.config import ModelConfig
from covrl.errors import UserError
from covrl.scoring.head import Projection

SHIPPED = Path(__file__).parents[1] / "quickstart"

PROBE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Largest difference in logits at which the split forward counts as the model's own, by dtype."""


class LanguageModel:
    """Wraps a Hugging Face causal language model.

    ``hidden`` runs the trunk on right-padded rows without a mask: with causal attention no token sees the padding
    behind it. ``projection`` is the output layer, kept apart so that logits can be computed in chunks. Both are
    proved at load against the model's own forward (:meth:`probe`).
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        self.model: Any = model.eval()
        self.temperature = temperature

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def context_length(self) -> int | None:
        """Most tokens that a row may have, where the model's config says."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def parameters(self) -> list[nn.Parameter]:
        """Trainable parameters, each once (tied ones included once)."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def hidden(self, ids: Tensor) -> Tensor:
        """Last hidden states ``[R, L, D]`` of right-padded rows ``[R, L]``."""
        return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def projection(self) -> Projection:
        """The output layer with today's weights."""
        head = self.model.get_output_embeddings()
        softcap = getattr(self.model.config, "final_logit_softcapping", None)
        return Projection(head.weight, getattr(head, "bias", None), softcap, self.temperature)

    @torch.no_grad()
    def probe(self) -> None:
        """Compare trunk and projection, on rows with padding, with the model's own logits on each row alone.

        Raises:
            UserError: they disagree, so this model's output layer is not the plain one that is assumed.
        """
        size = self.model.config.vocab_size
        ids = torch.arange(24, device=self.device).reshape(2, 12) % size
        own = [self.model(input_ids=ids[:1]).logits[0], self.model(input_ids=ids[1:, :7]).logits[0]]
        logits = self.projection()(self.hidden(ids)) * self.temperature
        worst = max(float((logits[0] - own[0]).abs().max()), float((logits[1, :7] - own[1]).abs().max()))
        if not worst <= PROBE_TOLERANCE.get(own[0].dtype, 0.25):
            raise UserError(
                f"model {type(self.model).__name__}: its logits differ by {worst:.2g} from projection(trunk(ids)); "
                "its output layer does more than a matrix, a bias and a soft cap, which is not supported yet"
            )


def load_model(config: ModelConfig, temperature: float = 1.0) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a folder or the hub; only safetensors, no remote code.

    Raises:
        UserError: no such folder or model, no weights, or an architecture that the probe rejects.
    """
    source = str(resolve_path(config.path))
    if Path(source).is_dir() and not list(Path(source).glob("*.safetensors")):
        raise UserError(f"model.path: {source} holds no *.safetensors weights")
    hf_logging.disable_progress_bar()  # a bar for the few tensors of a file only breaks the live display
    try:
        tokenizer = load_tokenizer(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, config.dtype), use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: cannot load {source!r}: {str(error).splitlines()[0]}") from error
    language_model = LanguageModel(model.to(resolve_device(config.device)), temperature)
    language_model.probe()
    return language_model, tokenizer


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub id, of the class that its own config names.

    For some model types (qwen2 among them) AutoTokenizer puts a class of its own in the place of a generic one and
    rebuilds another vocabulary from the same files, without a word; a generic tokenizer is therefore loaded as such.
    """
    named = get_tokenizer_config(source).get("tokenizer_class")
    generic = named in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(source)


def resolve_path(path: str) -> Path | str:
    """``covrl:NAME`` is a model that is shipped with the package; anything else is a folder or a hub id.

    Raises:
        UserError: no such shipped model.
    """
    if not path.startswith("covrl:"):
        return path
    shipped = {"digits": SHIPPED / "base", "animals": SHIPPED / "base_animals"}
    if path.removeprefix("covrl:") not in shipped:
        raise UserError(f"model.path: {path!r} is not shipped; there is {', '.join('covrl:' + n for n in shipped)}")
    return shipped[path.removeprefix("covrl:")]


def resolve_device(name: str) -> torch.device:
    """``auto`` is the accelerator if torch sees one, else the CPU.

    Raises:
        UserError: torch has no such device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"model.device: {name}: {str(error).splitlines()[0]}") from None
