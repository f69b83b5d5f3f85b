"""Which model is trained, and which of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from covrl.config.base import Name, Settings


class ModelConfig(Settings):
    """Which causal language model is trained."""

    path: Name = Field(description="folder or hub id of a Hugging Face causal language model with its tokenizer")
    dtype: Literal["auto", "float32", "mixed", "bfloat16", "float64"] = Field(
        "auto",
        description="dtype of the weights that are trained. mixed: float32 weights, gradients and moments, with matrix "
        "products in bfloat16. auto: mixed on an accelerator, float32 on a CPU. float32 products are whole: TF32 stays "
        "off. Pure bfloat16 loses updates below about 1/256 of a weight, so small learning rates do not train",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, mps, …")
    allow_pickle: bool = Field(
        False,
        description="read weights that are no safetensors (.bin) too, by torch's restricted reader; only for files of "
        "somebody you trust (docs/reliability.md)",
    )
    compile: bool = Field(False, description="torch.compile for the passes that score and train; sampling is as it was")
    offload_reference: bool = Field(
        False, description="keep models beside the policy in host memory, and on the device only while they are read"
    )


class LoraConfig(Settings):
    """Low-rank adapters in the place of all weights (docs/lora.md). Off as long as ``rank`` is 0.

    A linear layer's ``W`` becomes ``W + alpha/rank * B A``, and ``A`` and ``B`` alone are trained.
    """

    rank: int = Field(0, ge=0, description="rows of A and columns of B; 0: no adapters, all weights are trained")
    alpha: float = Field(32.0, gt=0, description="the adapter's scale, times the rank")
    target_modules: tuple[str, ...] = Field(
        ("all-linear",),
        min_length=1,
        description='names of the linear layers that get an adapter, such as ["q_proj", "v_proj"]; all-linear: all '
        "but the output layer",
    )
    four_bit_base: bool = Field(
        False,
        description="keep the linear layers of the frozen base in 4 bits (NF4 of QLoRA): about 4.5 bits a weight, and "
        "the model is another one by that rounding; with one process, or replicated weights",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_dropout(cls, table: Any) -> Any:
        if isinstance(table, Mapping) and (table.get("dropout") or table.get("lora_dropout")):
            raise ValueError(
                "there is no dropout: a sampled trace, its scores and its loss must be of one and the same model"
            )
        return table

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _used(self) -> LoraConfig:
        if "all-linear" in self.target_modules and len(self.target_modules) > 1:
            raise ValueError("target_modules: all-linear stands alone, or names of layers without it")
        fields = type(self).model_fields
        changed = [
            name for name in ("alpha", "target_modules", "four_bit_base") if getattr(self, name) != fields[name].default
        ]
        if not self.rank and changed:
            raise ValueError(f"{changed[0]} is set, but rank is 0, so all weights are trained: set lora.rank too")
        return self
