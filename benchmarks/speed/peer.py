"""TRL's side: ``python -m speed.peer WORKLOAD MODEL THREADS DTYPE MICRO ATTENTION`` prints one JSON line."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time

from speed.workloads import WORKLOADS, emit, questions, reward


def main(name: str, model: str, threads: int, dtype: str, micro: int, attention: str) -> None:
    """GRPOTrainer on the workload, each optimizer step timed."""
    import torch

    torch.set_num_threads(threads)
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    workload = WORKLOADS[name]
    fixed = {"min_new_tokens": workload.new} if not workload.end else {}
    cpu, wall, peak = [], [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.begun = time.process_time(), time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            cpu.append(time.process_time() - self.begun[0])
            wall.append(time.perf_counter() - self.begun[1])
            peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    weights = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=weights, attn_implementation=attention)
    with tempfile.TemporaryDirectory() as scratch:
        settings = GRPOConfig(
            output_dir=scratch,
            use_cpu=True,
            bf16=dtype == "mixed",
            fp16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=workload.rows // micro,
            num_generations=workload.rollouts,
            max_completion_length=workload.new,
            generation_kwargs=fixed,
            max_steps=workload.steps + 1,
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
        trainer = GRPOTrainer(
            model=policy,
            args=settings,
            processing_class=PreTrainedTokenizerFast.from_pretrained(model, padding_side="left"),
            reward_funcs=lambda completions, **_: [reward(text) for text in completions],
            train_dataset=Dataset.from_dict({"prompt": questions(workload, workload.steps + 1)}),
            callbacks=[Clock()],
        )
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trainer.train()
    emit(
        {
            "cpu": cpu[1:],
            "wall": wall[1:],
            "rss_mb": peak[-1] / 1024,
            "loaded_mb": loaded / 1024,
            "threads": threads,
            "omp": os.environ.get("OMP_NUM_THREADS"),
            "settings": f"{dtype}, micro-batch {micro}, {attention}",
        }
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6])
