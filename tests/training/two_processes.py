"""One training run, in as many processes as it was launched with; the main one writes its curve.
Started by test_features.py."""

import json
import sys
import tempfile

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainingArguments

import multiref as mr
from multiref.data import Pair
from multiref.training import PreferenceData, PreferenceTrainer, RewardTrainer, SlidingWindow, ThompsonSampling
from tests.conftest import make_llama, make_tokenizer
from tests.training.leave import leave
from tests.training.test_features import scored

WORDS = ["the cat", "a dog", "two", "the log", "a little dog", "five", "Max", "the mat", "on a log", "yes", "no it"]


def strategy_of(name: str, pairs, tokenizer):
    if name == "window":
        return SlidingWindow(window=2, statistic="accuracy")
    if name == "thompson":
        return ThompsonSampling(PreferenceData(pairs[:5], scored(pairs), tokenizer), hold=1)
    return None


def reward_trainer(args, pairs, tokenizer):
    torch.manual_seed(0)
    config = make_llama(len(tokenizer)).config
    model = LlamaForSequenceClassification(LlamaConfig(**{**config.to_dict(), "num_labels": 1, "initializer_range": 0.1}))
    return RewardTrainer(model, args=args, train_dataset=pairs, eval_dataset=pairs[:5], processing_class=tokenizer, centre=0.01)


def main(how: str, out: str, strategy: str = "fixed") -> None:
    tokenizer = make_tokenizer()
    pairs = [Pair(f"what is {w}?", f" {w} is raining", f" the {w} sat", w) for w in WORDS]
    model = make_llama(len(tokenizer), std=0.1)
    per_device = 4 if how == "one" else 2
    zero = {
        "zero_optimization": {"stage": 2},
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    sharded = {"fsdp": "full_shard", "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            per_device_train_batch_size=per_device,
            num_train_epochs=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            seed=5,
            ddp_backend=None if how == "one" else "gloo",
            per_device_eval_batch_size=2,
            **{"fsdp2": sharded, "deepspeed": {"deepspeed": zero}}.get(how, {}),
        )
        trainer = (
            reward_trainer(args, pairs, tokenizer)
            if strategy == "reward"
            else PreferenceTrainer(
                model,
                regularizer=mr.ReverseKL((0.5, 0.5)),
                beta=0.2,
                scores=scored(pairs),
                args=args,
                train_dataset=pairs,
                eval_dataset=pairs[:5],
                processing_class=tokenizer,
                token_budget=None if how == "one" else 40,
                strategy=strategy_of(strategy, pairs, tokenizer),
            )
        )
        trainer.train()
        evaluated = trainer.evaluate()["eval_loss"]
    lines = [line for line in trainer.state.log_history if "loss" in line]
    if args.process_index == 0:
        with open(out, "w") as stream:
            columns = {"losses": "loss", "margins": "rewards/margins", "weights": "weights/a"}
            curves = {name: [line.get(column) for line in lines] for name, column in columns.items()}
            json.dump({**curves, "eval_loss": evaluated}, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
