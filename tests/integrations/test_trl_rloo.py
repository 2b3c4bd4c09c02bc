"""RLOO with one reference and our reward function is RLOO with K: TRL's advantages are those of direct pooling;
what would break that is refused."""

import copy

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, ModelError
from tests.conftest import make_llama, make_tokenizer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

WEIGHTS, BETA = (0.2, 0.5, 0.3), 0.3
PROMPTS = ["the cat sat", "Once upon a time", "what is two", "Question:"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three models; the third has another tokenizer."""
    made = {}
    for seed, name in enumerate(("base", "second", "foreign")):
        folder = tmp_path_factory.mktemp(name)
        tokenizer = make_tokenizer("bytelevel" if name == "foreign" else "sentencepiece", chat=True)
        make_llama(len(tokenizer), seed=seed, std=0.1).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[name] = str(folder)
    return made


def vowels(completions, **_):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(letter in "aeiou" for letter in text) / 10 for text in texts]


def settings(folder, **options):
    return {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
        "num_generations": 4,
        "per_device_train_batch_size": 8, "max_completion_length": 6, "max_steps": 1, "logging_steps": 1, "save_strategy": "no",
        "disable_tqdm": True, **options,
    }  # fmt: skip


def build(folders, tmp_path, *, args=None, prompts=PROMPTS, **options):
    from multiref.integrations.trl_rloo import rloo

    data = datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    return rloo(
        options.pop("model", folders["base"]), options.pop("references", folders), mr.ReverseKL(WEIGHTS), beta=BETA,
        policy_reference="base", reward_funcs=options.pop("reward_funcs", vowels), train_dataset=data,
        args=settings(tmp_path, **(args or {})), **options,
    )  # fmt: skip


def advantages(trainer, prompts):
    """What TRL computes for a batch, and what was sampled."""
    trainer.model.train()
    batch = [{"prompt": prompt} for prompt in prompts for _ in range(4)]
    return trainer._generate_and_score_completions(batch)


def directly_pooled(trainer, output, prompts, folders, temperature=1.0):
    """R = r − β (log π − Σ_k w_k log π_k), leave-one-out: from plain logits of each model on text or ids,
    none of our scorers involved."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = trainer.processing_class
    rows = []
    for i in range(len(output["advantages"])):
        ids = output["completion_ids"][i][output["completion_mask"][i].bool()].tolist()
        context = output["prompt_ids"][i][output["prompt_mask"][i].bool()].tolist()
        rows.append(
            (prompts[i // 4], context, ids, tokenizer.decode(ids, skip_special_tokens=True), ids[-1] == tokenizer.eos_token_id)
        )
    logps = {}
    for name, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        own = AutoTokenizer.from_pretrained(folder)
        same = own.get_vocab() == tokenizer.get_vocab()
        logps[name] = []
        for prompt, context, ids, text, ended in rows:
            if not same:
                context = own(prompt)["input_ids"]
                ids = own(prompt + text)["input_ids"][len(context) :] + [own.eos_token_id] * ended
            with torch.no_grad():
                logits = model(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1].double() / temperature
            logps[name].append(float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()))
    refs = torch.tensor(list(logps.values()))
    policy = torch.tensor(logps["base"])  # before the first step
    returns = torch.tensor(vowels([row[3] for row in rows])) - BETA * (policy - torch.tensor(WEIGHTS[: len(refs)]) @ refs)
    groups = returns.reshape(-1, 4)
    return (groups - (groups.sum(1, keepdim=True) - groups) / 3).reshape(-1)


def test_advantages_are_those_of_direct_pooling(folders, tmp_path):
    trainer = build(folders, tmp_path)
    output = advantages(trainer, PROMPTS)
    truth = directly_pooled(trainer, output, PROMPTS, folders)
    assert float(truth.std()) > 0.1
    torch.testing.assert_close(output["advantages"].double(), truth.double(), atol=1e-5, rtol=0)


def test_every_end_of_the_trainer_s_ends_a_completion(folders, tmp_path):
    """The policy's generation_config may name several: a reference that scores text is asked for its end behind each."""
    trainer = build(folders, tmp_path)
    (reward,) = (each for each in trainer.reward_funcs if hasattr(each, "log_ratios"))
    trainer.eos_token_ids = [*trainer.eos_token_ids, 7]
    reward.check(trainer)
    (rollout,) = reward.rollouts(["the cat"] * 3, ["x"] * 3, [[5, 7], [5, trainer.processing_class.eos_token_id], [7, 5]])
    assert rollout.ended == (True, True, False)


def test_at_another_temperature(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.integrations.test_trl_rloo.WEIGHTS", (0.4, 0.6))
    aligned = {name: folders[name] for name in ("base", "second")}
    trainer = build(aligned, tmp_path, args={"temperature": 0.7})
    output = advantages(trainer, PROMPTS[:2])
    truth = directly_pooled(trainer, output, PROMPTS, aligned, temperature=0.7)
    torch.testing.assert_close(output["advantages"].double(), truth.double(), atol=1e-5, rtol=0)
    with pytest.raises(ArgumentError, match="another vocabulary"):
        build({"base": folders["base"], "second": folders["foreign"]}, tmp_path, args={"temperature": 0.7})


def test_a_step_of_training_runs_and_conversations_do_too(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.integrations.test_trl_rloo.WEIGHTS", (0.4, 0.6))
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    aligned = {name: folders[name] for name in ("base", "second")}
    trainer = build(aligned, tmp_path, prompts=chats, asynchronous=True, reward_processing_classes=[None])
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert "rewards/reference_reward/mean" in trainer.state.log_history[0]


def test_lora_has_its_base_as_reference(folders, tmp_path, monkeypatch):
    from peft import LoraConfig

    monkeypatch.setattr("tests.integrations.test_trl_rloo.WEIGHTS", (0.4, 0.6))
    aligned = {name: folders[name] for name in ("base", "second")}
    trainer = build(aligned, tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    output = advantages(trainer, PROMPTS[:2])
    truth = directly_pooled(trainer, output, PROMPTS, aligned)
    torch.testing.assert_close(output["advantages"].double(), truth.double(), atol=1e-5, rtol=0)
    with pytest.raises(ArgumentError, match="under LoRA"):
        build(
            {"base": folders["second"], "second": folders["base"]},
            tmp_path,
            model=folders["base"],
            peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        )


@pytest.mark.parametrize("others", [["some"], ["later", "some"], ["some", "all"]])
def test_a_completion_that_no_reward_applies_to_is_refused(folders, tmp_path, monkeypatch, others):
    """TRL leaves it out; beside our reward, which has a number for all, it would be trained as a reward of 0."""
    monkeypatch.setattr("tests.integrations.test_trl_rloo.WEIGHTS", (0.4, 0.6))

    def some(completions, **_):
        return [None if place % 4 == 1 else 1.0 for place in range(len(completions))]

    async def later(completions, **_):
        return [None if place % 2 else 1.0 for place in range(len(completions))]

    named = {"some": some, "later": later, "all": vowels}
    rewards = [named[name] for name in others]
    trainer = build({name: folders[name] for name in ("base", "second")}, tmp_path, reward_funcs=rewards)
    trainer.reward_funcs[-1].check(trainer)  # asked again, it does not count them twice
    if "all" in others:
        assert advantages(trainer, PROMPTS[:1])["advantages"].isfinite().all()
    else:
        with pytest.raises(ArgumentError, match=r"None of completion 2\. TRL would not leave it out"):
            advantages(trainer, PROMPTS[:1])


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"reward_clip_range": (-1.0, 1.0)}, "reward_clip_range"),
        ({"mask_truncated_completions": True}, "mask_truncated"),
        ({"normalize_advantages": True}, "normalize_advantages"),
        ({"sync_ref_model": True}, "sync_ref_model"),
        ({"beta": 0.1}, "beta"),
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 50}, "top_k"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
    ],
)
def test_settings_that_make_another_objective_are_refused(folders, tmp_path, args, word):
    with pytest.raises(ArgumentError, match=word):
        build(folders, tmp_path, args=args)


def grpo(folders, tmp_path, **options):
    """TRL's GRPO with our reward, as a user writes it."""
    from multiref.integrations.trl_rloo import reference_reward

    reward = reference_reward(folders, mr.ReverseKL(WEIGHTS), beta=BETA, policy_reference="base")
    data = datasets.Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    exact = {"beta": 0.0, "loss_type": "dr_grpo", "scale_rewards": "none", "disable_dropout": True}
    args = trl.GRPOConfig(**settings(tmp_path, **{**exact, **options}))
    return trl.GRPOTrainer(folders["base"], reward_funcs=[vowels, reward], args=args, train_dataset=data)


def test_grpo_has_the_whole_penalty_in_its_reward(folders, tmp_path):
    """GRPO's baseline is the mean of the group: its advantages are (G − 1)/G of the leave-one-out ones of direct pooling."""
    trainer = grpo(folders, tmp_path)
    output = advantages(trainer, PROMPTS[:2])
    expected = directly_pooled(trainer, output, PROMPTS[:2], folders) * 3 / 4
    assert torch.allclose(output["advantages"].double(), expected.double(), atol=1e-5)
    bent = {"tools": [len], "rollout_func": print, "aux_loss_enabled": True}  # as TRL keeps them
    for name, value in bent.items():
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ArgumentError, match=f"^{name}|^router_aux_loss_coef"):
            patch.setattr(trainer, name, value)
            trainer.reward_funcs[1].check(trainer)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"beta": 0.1}, "beta"),
        ({"scale_rewards": "group"}, "scale_rewards"),
        ({"loss_type": "dapo"}, "loss_type"),
        ({"num_iterations": 2}, "num_iterations"),
        ({"steps_per_generation": 2}, "steps_per_generation"),
        ({"temperature": 0.7}, "temperature"),
        ({"entropy_coef": 0.01}, "entropy_coef"),
        ({"vllm_structured_outputs_regex": "a+"}, "vllm_structured_outputs_regex"),
        ({"mask_truncated_completions": True}, "mask_truncated"),
        ({"top_p": 0.9}, "top_p"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_bends_grpo_is_refused_by_the_name_of_its_flag(given, word):
    """As TRL's own configuration says it, without a model."""
    from multiref.integrations.trl_conditions import check_grpo, is_grpo

    exact = {"beta": 0.0, "loss_type": "dr_grpo", "scale_rewards": "none"}
    args = trl.GRPOConfig(**settings("out", **exact))
    assert is_grpo(args) and not is_grpo(trl.RLOOConfig(**settings("out")))
    check_grpo(args, temperature=1.0)
    with pytest.raises(ArgumentError, match=f"^{word}"):
        check_grpo(trl.GRPOConfig(**settings("out", **{**exact, **given})), temperature=1.0)


@pytest.mark.parametrize("given", [{"num_iterations": 2}, {"steps_per_generation": 2}])
def test_rloo_on_samples_of_an_older_policy_is_refused_too(given):
    """Its ratios of whole completions are clipped, and the penalty in its reward is the older policy's."""
    from multiref.integrations.trl_conditions import check_arguments

    with pytest.raises(ArgumentError, match=f"^{next(iter(given))}: found 2, expected at most 1"):
        check_arguments(trl.RLOOConfig(**settings("out", beta=BETA, **given)), beta=BETA, temperature=1.0)


def test_a_reference_that_trl_reloads_from_elsewhere_is_refused(folders, tmp_path):
    """The policy comes from `second`, so TRL's reference is `second`, not `base` as the user believes."""
    with pytest.raises(ArgumentError, match=r"reloaded its reference from .*second"):
        build(folders, tmp_path, model=folders["second"])


def test_used_without_the_builder_it_checks_the_trainer_that_calls_it(folders, tmp_path):
    from multiref.integrations.trl_rloo import reference_reward

    reward = reference_reward(folders, mr.ReverseKL(WEIGHTS), beta=BETA, policy_reference="base")
    data = datasets.Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    args = trl.RLOOConfig(**settings(tmp_path, beta=BETA, normalize_advantages=True))
    trainer = trl.RLOOTrainer(folders["base"], reward_funcs=[vowels, reward], args=args, train_dataset=data)
    with pytest.raises(ArgumentError, match="normalize_advantages"):
        trainer.train()


def test_bad_arguments(folders):
    from multiref.integrations.trl_rloo import reference_reward

    with pytest.raises(ArgumentError, match="ReverseKL"):
        reference_reward(folders, mr.ForwardKL(WEIGHTS), beta=BETA, policy_reference="base")
    with pytest.raises(ArgumentError, match="policy_reference"):
        reference_reward(folders, mr.ReverseKL(WEIGHTS), beta=BETA, policy_reference="initial")
    reward = reference_reward(folders, mr.ReverseKL(WEIGHTS), beta=BETA, policy_reference="base")
    with pytest.raises(ArgumentError, match=r"^images: the policy sees them"):
        reward(["the cat"] * 2, ["a", "b"], [[5], [6]], images=[["a picture"], None])
    assert len(reward(["the cat"] * 2, ["a", "b"], [[5], [6]], images=[None, None])) == 2


def test_a_release_of_trl_that_is_not_supported_is_named(monkeypatch):
    import multiref.integrations.trl_conditions as conditions

    monkeypatch.setattr(conditions, "version", lambda name: "1.15.0")
    with pytest.raises(ArgumentError, match=r"1\.15\.0 .* supports"):
        conditions.check_version()


@pytest.mark.parametrize(("settings", "word"), [({"min_p": 0.1}, "min_p=0.1"), ({"suppress_tokens": [5]}, "suppress_tokens")])
def test_generation_settings_of_the_policy_that_bend_sampling_are_refused(settings, word):
    """TRL's own `generate` takes from them what `RLOOConfig` leaves open; what the config sets, and end tokens,
    are let through."""
    from multiref.integrations.trl_conditions import check_generation

    policy = make_llama(20)
    policy.generation_config.update(eos_token_id=[1, 2], do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.05)
    check_generation(policy)
    policy.generation_config.update(**settings)
    with pytest.raises(ArgumentError, match=f"generation_config: the policy's has .*{word}"):
        check_generation(policy)


def test_dropout_that_trl_leaves_on_is_refused_by_its_module(folders, tmp_path):
    """TRL trains in training mode, and its switch knows dropout in modules alone."""
    from tests.conftest import make_gpt2

    folder = tmp_path / "gpt2"
    tokenizer = make_tokenizer("bytelevel", chat=True)
    make_gpt2(len(tokenizer), attn_pdrop=0.1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        ModelError, match=r"^transformer\.drop \(Dropout\) draws random numbers in training mode.*disable_dropout=True"
    ):
        build(
            folders,
            tmp_path,
            model=str(folder),
            references={"base": str(folder), "second": folders["second"], "foreign": folders["foreign"]},
            args={"disable_dropout": False},
        )
