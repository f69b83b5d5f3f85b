"""TRL's side: ``python -m speed.peer '{"workload": "M-34", "model": …, "threads": 1, "dtype": "mixed", …}'``.

Prints one JSON line. ``micro`` is the micro-batch and ``attention`` the attention function; accumulation makes up the
workload's rows, and each batch is trained on once, so that TRL needs no pass for old log-probs.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from typing import Any

from speed.meter import Meter, asked, begin, emit
from speed.workloads import Workload, questions, reward, workload_of


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """GRPOTrainer on the workload, each optimizer step measured."""
    begin(asked["threads"], asked.get("memory_mb"))
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOTrainer

    workload, count, warm = workload_of(asked), asked["steps"], asked.get("warm", 1)
    policy = load(asked["model"], asked["dtype"], asked["attention"])

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.open = ExitStack()
            self.open.enter_context(meter.step())

        def on_step_end(self, *_: object, **__: object) -> None:
            self.open.close()

    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=policy,
            args=settings(workload, asked, warm + count, scratch),
            processing_class=PreTrainedTokenizerFast.from_pretrained(asked["model"], padding_side="left"),
            reward_funcs=lambda completions, **_: [reward(written(one)) for one in completions],
            train_dataset=Dataset.from_dict({"prompt": prompts(workload, warm + count)}),
            callbacks=[Clock()],
        )
        meter = Meter(policy.parameters(), warm)
        trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    return meter.record(optimizer)


def prompts(workload: Workload, steps: int) -> list[Any]:
    """The questions as TRL takes them: as they are, or as the user's turn of a chat where the model has a template."""
    texts = questions(workload, steps)
    return [[{"role": "user", "content": text}] for text in texts] if workload.real else texts


def written(completion: Any) -> str:
    """The text of a completion, which in a chat is the last turn."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def load(model: str, dtype: str, attention: str) -> Any:
    """The workload's model; ``mixed`` has float32 weights, and autocast makes the rest."""
    import torch
    from transformers import AutoModelForCausalLM

    weights = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(model, dtype=weights, attn_implementation=attention)


def settings(workload: Workload, asked: dict[str, Any], count: int, scratch: str) -> Any:
    """TRL's settings for the workload: the same optimizer, sampling and number of tokens as ours."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=scratch,
        use_cpu=True,
        bf16=asked["dtype"] == "mixed",
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=asked["micro"],
        gradient_accumulation_steps=workload.rows // asked["micro"],
        num_generations=workload.rollouts,
        max_completion_length=workload.new,
        generation_kwargs={"min_new_tokens": workload.new} if not workload.end else {},
        max_steps=count,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        beta=0.0,
        loss_type="dapo",
        temperature=1.0,
        top_k=0,
        shuffle_dataset=False,
        report_to="none",
        logging_steps=1000,
        save_strategy="no",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    emit(main(asked()))
