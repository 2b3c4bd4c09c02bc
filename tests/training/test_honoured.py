"""Every field of `transformers.TrainingArguments` is decided: honoured, without an effect on what is trained and reported, or
refused by name. A field of a later release fails here until somebody decides."""

import shutil
from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments

from multiref.errors import ArgumentError, MultirefNotice, MultirefWarning, OutputError
from multiref.models import LanguageModel
from multiref.models.small import small_llama, word_tokenizer
from multiref.references import References
from multiref.regularizers import ReverseKL
from multiref.training import PreferenceTrainer
from multiref.training.honoured import IGNORED, check_arguments
from tests.training.world import END, WORDS, arguments

HONOURED = """
output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps
max_grad_norm bf16 fp16 tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config
torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level
log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start eval_accumulation_steps save_only_model
save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo
hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
dataloader_drop_last dataloader_num_workers train_sampling_strategy ddp_find_unused_parameters ddp_bucket_cap_mb
ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics local_rank
"""
# of speed alone, of scripts around a trainer, or of tokens and columns, which our batches have none of
HARMLESS = """
average_tokens_across_devices use_cache dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
dataloader_multiprocessing_context dataloader_in_order remove_unused_columns do_train do_eval do_predict
"""
REFUSED = {
    "label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0, "auto_find_batch_size": True,
    "include_num_input_tokens_seen": "all", "prediction_loss_only": True, "eval_do_concat_batches": False,
    "eval_use_gather_object": True, "include_for_metrics": ["loss"], "batch_eval_metrics": True, "label_names": ["labels"],
    "length_column_name": "size", "bf16_full_eval": True, "fp16_full_eval": True, "resume_from_checkpoint": "folder",
}  # fmt: skip


def test_every_field_is_decided():
    decided = {*HONOURED.split(), *HARMLESS.split(), *IGNORED}
    assert {field.name for field in fields(TrainingArguments)} <= decided
    assert len(decided) == len(HONOURED.split()) + len(HARMLESS.split()) + len(IGNORED)
    assert set(IGNORED) - {"parallelism_config"} == set(REFUSED)


def test_what_stands_when_nothing_is_asked_is_taken(tmp_path):
    check_arguments(arguments(tmp_path))
    check_arguments(arguments(tmp_path, include_num_input_tokens_seen=False, label_names=None, neftune_noise_alpha=None))


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_what_would_be_ignored_is_refused_by_name(name, value, tmp_path):
    with pytest.raises(ArgumentError, match=rf"^{name}: found .*, which would be ignored; "):
        check_arguments(arguments(tmp_path, **{name: value}))


def test_what_would_be_another_step_or_another_best(tmp_path):
    with pytest.raises(ArgumentError, match=r"accelerator_config\.split_batches"):
        check_arguments(arguments(tmp_path, accelerator_config={"split_batches": True}))
    best = {"eval_strategy": "steps", "metric_for_best_model": "eval_calibration_error"}
    with pytest.raises(ArgumentError, match="calibration_error is better where it is lower"):
        check_arguments(arguments(tmp_path, **best))
    check_arguments(arguments(tmp_path, **best, greater_is_better=False))


def test_checkpoints_that_cannot_be_resumed_are_said(tmp_path):
    with pytest.warns(MultirefWarning, match="save_only_model: .* cannot be resumed"):
        check_arguments(arguments(tmp_path, save_only_model=True))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_steps": 5, "num_train_epochs": 2}, "num_train_epochs"),
        ({"eval_steps": 5}, "eval_steps"),
        ({"save_strategy": "epoch", "save_steps": 5}, "save_steps"),
        ({"logging_strategy": "epoch", "logging_steps": 5}, "logging_steps"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "warmup_steps"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "gradient_checkpointing_kwargs"),
        ({"optim": "sgd", "adam_beta1": 0.5}, "adam_beta1"),
        ({"optim": "adafactor", "adam_epsilon": 1e-3}, "adam_epsilon"),
        ({"eval_delay": 3}, "eval_delay"),
        ({"fp16": True}, "fp16"),
        ({"metric_for_best_model": "loss"}, "metric_for_best_model"),
        ({"data_seed": 3, "train_sampling_strategy": "sequential"}, "data_seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_effect_beside_others_is_said(options, name, tmp_path):
    with pytest.warns(MultirefNotice, match=f"^{name}: .* has no effect: ") as said:
        check_arguments(arguments(tmp_path, **{"max_steps": -1, **options}))
    assert [each.category for each in said].count(MultirefNotice) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": float("nan")},
        {"adam_beta2": 1.5},
        {"weight_decay": -1.0},
        {"lr_scheduler_kwargs": {"num_cycles": 3}, "lr_scheduler_type": "linear"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_an_optimizer_that_cannot_be_is_refused_before_anything_is_scored(options, tmp_path):
    with pytest.raises(ArgumentError, match=r"optimizer or schedule|weight_decay"):
        check_arguments(arguments(tmp_path, **options))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_steps": 0}, "max_steps"),  # transformers makes one step
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm"),
        ({"save_strategy": "best"}, "save_strategy"),  # no evaluation: nothing would be saved
        ({"use_liger_kernel": True}, "use_liger_kernel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_would_mean_another_run_are_refused(options, name, tmp_path, monkeypatch):
    monkeypatch.setattr("multiref.training.honoured.is_liger_kernel_available", lambda: False)
    with pytest.raises(ArgumentError, match=name):
        check_arguments(arguments(tmp_path, **options))


PAIRS = [{"prompt": f"w{i}", "chosen": " w1 w2", "rejected": " w3"} for i in range(3)]


@pytest.fixture(scope="module")
def scores():
    model = LanguageModel(small_llama(9, hidden=8, heads=2, layers=1), word_tokenizer(WORDS), "self")
    return References({"self": model}, tokenisation=END).score(PAIRS)


def begun(scores, folder, model=None, optimizers=(None, None), **options):
    return PreferenceTrainer(
        small_llama(9, hidden=8, heads=2, layers=1) if model is None else model, regularizer=ReverseKL(), beta=0.1,
        scores=scores, train_dataset=PAIRS, eval_dataset=options.pop("eval_dataset", None), tokenisation=END,
        processing_class=word_tokenizer(WORDS), optimizers=optimizers, args=arguments(folder, **({"max_steps": 1} | options)),
    )  # fmt: skip


def test_the_metric_of_the_best_is_one_that_is_reported(scores, tmp_path):
    """Before the first step, with the names there are; those of named sets have the set's. (Of two sets, one's `nll` is better
    where it is lower, too.)"""
    best = {"eval_strategy": "steps", "eval_steps": 1, "logging_strategy": "steps"}
    for held_out, metric, known in (
        (PAIRS, "loss_of_mine", "loss, rewards/chosen"),
        ({"a": PAIRS}, "loss", "a_loss, a_rewards"),
    ):
        trainer = begun(scores, tmp_path, eval_dataset=held_out, metric_for_best_model=metric, **best)
        with pytest.raises(ArgumentError, match=rf"metric_for_best_model: found '{metric}', expected one of {known}"):
            trainer.train()
        assert trainer.state.global_step == 0
    trainer = begun(scores, tmp_path, eval_dataset={"a": PAIRS}, metric_for_best_model="eval_a_loss", **best)
    trainer.train()
    assert trainer.state.best_metric == next(line["eval_a_loss"] for line in trainer.state.log_history if "eval_a_loss" in line)
    with pytest.raises(ArgumentError, match="a_nll is better where it is lower"):
        check_arguments(arguments(tmp_path, metric_for_best_model="eval_a_nll", **best))
    with pytest.raises(ArgumentError, match="eval_on_start: found True, without evaluation data"):
        begun(scores, tmp_path, eval_on_start=True)


def test_what_cannot_train_the_model_is_refused(scores, tmp_path):
    frozen, model = (small_llama(9, hidden=8, heads=2, layers=1) for _ in range(2))
    frozen.requires_grad_(False)
    with pytest.raises(ArgumentError, match="no weight of it requires a gradient"):
        begun(scores, tmp_path, frozen)
    other = torch.optim.SGD(small_llama(9).parameters(), lr=0.1)
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    for given, said in (
        ((other, None), "holds no weight of the model"),
        ((torch.optim.SGD, None), "expected an optimizer on the model's weights"),
        ((own, torch.optim.lr_scheduler.ConstantLR(other)), "schedule is of another optimizer"),
        ((None, torch.optim.lr_scheduler.ConstantLR(own)), "schedule is of another optimizer"),
    ):
        with pytest.raises(ArgumentError, match=said):
            begun(scores, tmp_path, model, given)
    begun(scores, tmp_path, model, (own, torch.optim.lr_scheduler.ConstantLR(own)))


def test_what_nobody_does_for_an_adapter_is_said(scores, tmp_path):
    """AdaLoRA's training loop is asked to move ranks between layers; without that its target is never reached."""
    import peft

    options = peft.AdaLoraConfig(target_modules=["q_proj"], init_r=3, total_step=9, tinit=0, tfinal=1, task_type="CAUSAL_LM")
    with pytest.warns(MultirefWarning, match="AdaLoRA's rank stays init_r = 3"):
        begun(scores, tmp_path, peft.get_peft_model(small_llama(9, hidden=8, heads=2, layers=1), options))


def test_adapters_that_are_active_together_are_refused(scores, tmp_path):
    """What `save_model` leaves would come back as the first alone."""
    import peft

    first, second = (peft.LoraConfig(r=1, target_modules=[name], task_type="CAUSAL_LM") for name in ("q_proj", "o_proj"))
    model = peft.get_peft_model(small_llama(9, hidden=8, heads=2, layers=1), first)
    model.add_adapter("second", second)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ArgumentError, match="adapters 'default', 'second' are active together"):
        begun(scores, tmp_path, model)
    model.set_adapter("default")
    begun(scores, tmp_path, model)


def test_a_run_whose_best_so_far_is_lost_does_not_end_with_the_last_in_its_place(scores, tmp_path):
    """Margins grow, so the smallest is the first. A folder that was moved has it; one where it is damaged or gone has not."""
    best = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "rewards/margins", "greater_is_better": False,
    }  # fmt: skip

    def run(where, steps):
        model = small_llama(9, hidden=8, heads=2, layers=1)
        trainer = begun(scores, tmp_path / where, model, eval_dataset=PAIRS, max_steps=steps, learning_rate=1e-2, **best)
        trainer.train(resume_from_checkpoint=steps > 2)
        return trainer.model.state_dict()

    first = run("was", 2)
    (tmp_path / "was").rename(tmp_path / "is")
    assert all(torch.equal(first[name], value) for name, value in run("is", 4).items())
    file = tmp_path / "is" / "checkpoint-1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(OutputError, match=r"best so far, .*checkpoint-1, is lost: model.safetensors has changed"):
        run("is", 5)
    shutil.rmtree(file.parent)
    with pytest.raises(OutputError, match=r"best so far, .*checkpoint-1, is lost"):
        run("is", 5)
