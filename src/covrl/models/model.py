"""A causal language model as the trainer sees it: ids to hidden states, and the projection to logits."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as hf_logging

from covrl.config import ModelConfig
from covrl.errors import UserError
from covrl.models.adapters import CONFIG, base_of, is_adapter, is_of_four_bits, load_adapter
from covrl.models.attention import NAME
from covrl.models.compute import compute_in_bfloat16
from covrl.models.four_bit import quantise
from covrl.models.gguf import is_gguf, notes, read_tokenizer
from covrl.models.projection import Projection
from covrl.models.shared import Place, lay_out, nothing_masked
from covrl.models.text import context_length, freeze_other_parts, left_out, model_class, text_config, trunk
from covrl.models.trust import check_weights_there, quoted, read_model, safe_config

Ids = tuple[int, ...]

os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else transformers asks a service to convert a pickle

SHIPPED = Path(__file__).parents[1] / "quickstart"

SHIPPED_BASES = {
    "covrl:digits": ("base", "quickstart.toml"),
    "covrl:digits-common": ("base_common", "quickstart.toml"),
    "covrl:animals": ("base_animals", "animals.toml"),
    "covrl:countdown": ("base_countdown", "countdown.toml"),
}
"""Models that come with the package: by name, the folder and the recipe in :data:`SHIPPED`."""


class Paths(NamedTuple):
    """The fast paths that a model is scored on; :func:`covrl.models.proof.prove_scoring` decides which of them hold.

    ``split_head``: the trunk first, then the output layer on chunks of positions; else the logits of the model's own
    forward, all at once. ``padded``: rows of different lengths side by side; else rows of one length at a time.
    ``shared``: rows end to end with a prompt that several have read once (:mod:`covrl.models.shared`). ``flex``: their
    attention is FlexAttention, where it has a backward pass (:mod:`covrl.models.flex`).
    """

    split_head: bool = True
    padded: bool = True
    shared: bool = True
    flex: bool = False


class States(NamedTuple):
    """What a model made of rows: ``flat`` ``[N, D]``, and where the tokens of each row are in it."""

    flat: Tensor
    places: Sequence[Place]


class LanguageModel:
    """Wraps a Hugging Face causal language model.

    ``states`` reads rows end to end, each prompt once. ``hidden`` runs the trunk on right-padded rows without a mask:
    with causal attention no token sees the padding behind it. ``projection`` is the output layer, kept apart so that
    logits can be computed in chunks. All are proved at load against the model's own forward
    (:func:`covrl.models.proof.prove_scoring`), which gives up the path that does not hold.
    ``compute_dtype`` is what the output layer's product is computed in, if not in the weights' own. ``noise`` is the
    mean difference of a token's log-prob that rounding makes, in nats, as the proof measured it; 0 before.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        self.model: Any = model.eval()
        freeze_other_parts(self.model)
        self.temperature = temperature
        self._attention = self.model.config._attn_implementation
        self.paths = Paths(shared=False)  # until it is proved
        self.given_up: list[str] = []
        self.noise = 0.0
        self.compute_dtype: torch.dtype | None = None

    @property
    def paths(self) -> Paths:
        """The fast paths that are taken. Those with shared prompts have an attention function of their own."""
        return self._paths

    @paths.setter
    def paths(self, paths: Paths) -> None:
        self._paths = paths
        self.model.config._attn_implementation = NAME if paths.shared else self._attention

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def score_dtype(self) -> torch.dtype:
        """What log-probs are computed in: float64 for float64 weights, else float32."""
        wide = next(self.model.parameters()).dtype == torch.float64
        return torch.float64 if wide else torch.float32

    @property
    def context_length(self) -> int | None:
        """Most tokens that a row may have, where the model's config says."""
        return context_length(self.model.config)

    @property
    def trunk_of(self) -> LanguageModel:
        """The model whose hidden states this one reads: itself, unless it is a head on another's trunk."""
        return self

    def named_trained(self) -> dict[str, nn.Parameter]:
        """What this model's optimizer moves, by name; tied parameters once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def parameters(self) -> list[nn.Parameter]:
        """Trainable parameters, each once (tied ones included once)."""
        return list(self.named_trained().values())

    def place(self, device: torch.device) -> None:
        """Bring what is not in the Hugging Face model to a device; nothing here."""
        del device

    def own_weights(self) -> list[nn.Parameter]:
        """The weights that are this model's alone, trainable or not; models that share a base have their adapters."""
        return list(self.model.parameters())

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder, without its tokenizer."""
        self.model.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Take up the weights of :meth:`save`."""
        checked = safe_config(str(folder))
        self.model.load_state_dict(read_model(type(self.model), str(folder), self.model.dtype, checked).state_dict())

    def states(self, rows: Sequence[tuple[Ids, int]]) -> States:
        """Last hidden states of rows of (ids, how many of them are a prompt that other rows may have too).

        Without ``paths.split_head`` these are the logits themselves.
        """
        if not self.paths.shared:
            hidden = self.hidden([ids for ids, _ in rows])
            width = hidden.shape[1]
            return States(hidden.flatten(0, 1), [Place(i * width, 0, i * width) for i in range(len(rows))])
        layout = lay_out(rows, self.device, self.paths.flex)
        mask = nothing_masked(self.device)
        position = {"position_ids": layout.positions[None], "attention_mask": mask, "covrl_layout": layout}
        return States(self._forward(layout.ids[None], **position)[0], layout.places)

    def hidden(self, rows: Sequence[Ids]) -> Tensor:
        """Last hidden states ``[R, L, D]`` of rows of ids, L the longest; what lies behind a row's end means nothing.

        Without ``paths.split_head`` these are the logits themselves, ``[R, L, V]``.
        """
        width = max(map(len, rows))
        if self.paths.padded:
            return self._trunk([row + (0,) * (width - len(row)) for row in rows])
        found: dict[int, Tensor] = {}
        for length in sorted({len(row) for row in rows}):
            mine = [i for i, row in enumerate(rows) if len(row) == length]
            states = nn.functional.pad(self._trunk([rows[i] for i in mine]), (0, 0, 0, width - length))
            found |= dict(zip(mine, states, strict=True))
        return torch.stack([found[i] for i in range(len(rows))])

    def _trunk(self, rows: Sequence[Ids]) -> Tensor:
        return self._forward(torch.tensor(rows, device=self.device))

    def _forward(self, ids: Tensor, **named: Any) -> Tensor:
        if self.paths.split_head:
            return trunk(self.model)(input_ids=ids, use_cache=False, **named).last_hidden_state
        return self.model(input_ids=ids, use_cache=False, **named).logits

    def projection(self) -> Projection:
        """The output layer with today's weights."""
        if not self.paths.split_head:
            return Projection(None, temperature=self.temperature)
        head = self.model.get_output_embeddings()
        softcap = getattr(text_config(self.model.config), "final_logit_softcapping", None)
        return Projection(head.weight, getattr(head, "bias", None), softcap, self.temperature, self.compute_dtype)


def resolve_dtype(config: ModelConfig) -> ModelConfig:
    """The settings with a dtype in the place of ``"auto"``: mixed on an accelerator, float32 on a CPU.

    By the kind of device alone: no clock has a part in it, so the same command takes the same dtype.
    """
    if config.dtype != "auto":
        return config
    chosen = "float32" if resolve_device(config.device).type == "cpu" else "mixed"
    return config.model_copy(update={"dtype": chosen})


def load_model(config: ModelConfig, temperature: float = 1.0) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a folder, the hub or a GGUF file, without remote code (:mod:`.trust`).

    The folder of a LoRA adapter is its base with the adapter on, which computes what was trained to the last bit.

    Raises:
        UserError: no such folder or model, files that cannot or must not be read, or logits that are not finite.
    """
    source = str(resolve_path(config.path))
    base = base_source(source)
    language_model, tokenizer = _load(resolve_dtype(config), base, temperature)
    if base != source:
        if is_of_four_bits(Path(source)):
            quantise(language_model.model)
        load_adapter(language_model.model, Path(source))
        if (Path(source) / "tokenizer_config.json").is_file():
            tokenizer = quoted(source, lambda: load_tokenizer(source))
    return language_model, tokenizer


FEW_LAYERS = 4
"""Layers of a model that are loaded to prove its paths on, where its whole is not; more where its config tells layers
apart, until two of each kind are among them."""


def first_layers(config: ModelConfig, temperature: float = 1.0) -> LanguageModel:
    """A model of the first layers of another, with their weights.

    Raises:
        UserError: as :func:`load_model`.
    """
    return _load(config, str(resolve_path(config.path)), temperature, few=True)[0]


def _cut(config: Any) -> Any:
    """A config with the first layers alone."""
    config = copy.deepcopy(config)
    text = text_config(config)
    count = text.num_hidden_layers
    by_layer = {k: v for k, v in vars(text).items() if isinstance(v, (list, tuple)) and len(v) == count}
    seen = list(zip(*by_layer.values(), strict=True)) if by_layer else [()] * count
    kinds = {repr(kind) for kind in seen}
    kept = next(n for n in range(1, count + 1) if n == count or (n >= FEW_LAYERS and _twice_each(seen[:n], kinds)))
    text.num_hidden_layers = kept
    for name, values in by_layer.items():
        setattr(text, name, values[:kept])
    return config


def _twice_each(seen: Sequence[Any], kinds: set[str]) -> bool:
    counts = Counter(map(repr, seen))
    return all(counts[kind] >= 2 for kind in kinds)


def without_memory(config: ModelConfig, temperature: float = 1.0) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """A model of which no tensor takes memory yet, and its tokenizer; the weights are those of a folder.

    Raises:
        UserError: it is no folder of safetensors, or as :func:`load_model`.
    """
    source = str(resolve_path(config.path))
    if is_gguf(source) or not Path(source).is_dir():
        raise UserError(f"training.load = parts: {source!r} is no folder with safetensors; download it first")
    checked = safe_config(source)
    dtype = torch.float32 if config.dtype == "mixed" else getattr(torch, config.dtype)
    cls = model_class(checked, source)
    with torch.device("meta"):
        model = quoted(
            source,
            lambda: (
                cls._from_config(checked, dtype=dtype)
                if hasattr(cls, "_from_config")
                else cls.from_config(checked, dtype=dtype)
            ),
        )
    if (Path(source) / "generation_config.json").is_file():
        model.generation_config = quoted(source, lambda: GenerationConfig.from_pretrained(source))
    found = LanguageModel(model, temperature)
    found.given_up += left_out(model, checked)
    if config.dtype == "mixed":
        found.compute_dtype = torch.bfloat16
        compute_in_bfloat16(model)
    return found, quoted(source, lambda: load_tokenizer(source))


class Unloaded(NamedTuple):
    """What is known of a model before its weights are read: where it is and where its base is, config and tokenizer."""

    source: str
    base: str
    config: Any
    tokenizer: Any


def without_weights(config: ModelConfig) -> Unloaded:
    """A model's config and tokenizer; those of an adapter are its base's, but for a tokenizer of its own.

    Raises:
        UserError: as :func:`load_model`.
    """
    source = str(resolve_path(config.path))
    base = base_source(source)
    checked = safe_config(base, config.allow_pickle)
    words = source if (Path(source) / "tokenizer_config.json").is_file() else base
    return Unloaded(source, base, checked, quoted(words, lambda: load_tokenizer(words)))


def base_source(source: str) -> str:
    """Where the weights of a model's folder or hub id are: there, or at the base that an adapter names.

    Raises:
        UserError: the adapter names no base, or one that is not there or an adapter itself.
    """
    if not is_adapter(source):
        return source
    check_weights_there(Path(source), allow_pickle=False)
    base = str(resolve_path(base_of(Path(source))))
    if is_adapter(base):
        raise UserError(f"{source}: its base {base} is an adapter too: `covrl merge {base} --out FOLDER` first")
    if not is_gguf(base) and not Path(base).is_dir() and _is_local(base):
        raise UserError(f"{source}: there is no folder {base}, which the adapter is for (see {CONFIG})")
    if is_gguf(base) and not Path(base).is_file():
        raise UserError(f"{source}: there is no file {base}, which the adapter is for (see {CONFIG})")
    return base


def _load(
    config: ModelConfig, source: str, temperature: float, few: bool = False
) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    if not is_gguf(source) and not Path(source).is_dir() and _is_local(source):
        raise UserError(f"model.path: there is no folder {source}")
    checked = safe_config(source, config.allow_pickle)
    checked = _cut(checked) if few else checked
    hf_logging.disable_progress_bar()  # a bar for the few tensors of a file only breaks the live display
    tokenizer = quoted(source, lambda: load_tokenizer(source))
    dtype = torch.float32 if config.dtype == "mixed" else getattr(torch, config.dtype)
    model = read_model(model_class(checked, source), source, dtype, checked, config.allow_pickle)
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers fetches the base of an adapter on its own
        raise UserError(f"model.path: {source!r} is an adapter: download its folder and give that")
    for parameter in model.parameters():  # else a view of the file, which may be replaced, at the file's alignment
        parameter.data = parameter.data.clone()
    language_model = LanguageModel(model.to(resolve_device(config.device)), temperature)
    language_model.given_up += left_out(model, checked)
    if is_gguf(source):
        language_model.given_up += notes(model, source)
    if config.dtype == "mixed":
        language_model.compute_dtype = torch.bfloat16
        compute_in_bfloat16(model)
    return language_model, tokenizer


def _is_local(source: str) -> bool:
    """Whether a name can only mean a folder: a hub id is NAME or OWNER/NAME, and its owner is not a folder here."""
    outer = Path(source).parent
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or (str(outer) != "." and outer.is_dir())


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder, hub id or GGUF file, of the class that its own config names.

    For some model types (qwen2 among them) AutoTokenizer puts a class of its own in the place of a generic one and
    rebuilds another vocabulary from the same files, without a word; a generic tokenizer is therefore loaded as such.
    """
    if is_gguf(source):
        return read_tokenizer(source)
    named = get_tokenizer_config(source).get("tokenizer_class")
    generic = named in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(source, trust_remote_code=False)


def resolve_path(path: str) -> Path | str:
    """``covrl:NAME`` is a model that is shipped with the package; anything else is a folder or a hub id.

    Raises:
        UserError: no such shipped model.
    """
    if not path.startswith("covrl:"):
        return path
    if path not in SHIPPED_BASES:
        raise UserError(f"model.path: {path!r} is not shipped; there is {', '.join(SHIPPED_BASES)}")
    return SHIPPED / SHIPPED_BASES[path][0]


def resolve_device(name: str) -> torch.device:
    """``auto`` is the accelerator if torch sees one, else the CPU.

    Raises:
        UserError: torch has no such device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if name.partition(":")[0] == "meta":
        raise UserError("model.device: meta holds no numbers; choose cpu, cuda, mps or auto")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"model.device: {name}: {str(error).splitlines()[0]}") from None
