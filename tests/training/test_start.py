"""A policy that is one of its references starts at log-ratio 0: reported where it does, an error where it does not, and no
matter of a policy that is another model, was trained, or is tokenised otherwise."""

import copy
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

import multiref as mr
from multiref.errors import ArgumentError, ModelError, MultirefWarning, OutputError, StoreError
from multiref.models import Encoded, LanguageModel, score_completions
from multiref.models.small import small_llama, word_tokenizer
from multiref.training import PreferenceTrainer, iterative
from multiref.training.online import RLOO, OnlineArguments, OnlineTrainer, RewardModel, Rule, WinRate, judge_by_reward
from multiref.training.reward import open_reward_model
from multiref.training.start import check_start, rounding_unit
from multiref.training.sums import SUMS
from tests.models.templates import CHATML, byte_tokenizer
from tests.training.world import END, WORDS, arguments, word_trainer

PAIRS = [{"prompt": f"w{i}", "chosen": " w1 w2", "rejected": " w3"} for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    small_llama(9, spread=0.3).save_pretrained(tmp_path / "model")
    word_tokenizer(WORDS).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def trained(model, scores, where, **options):
    """The first line of a run of one step."""
    trainer = word_trainer(model, scores, PAIRS, where, **({"learning_rate": 1e-3} | options))
    trainer.train()
    return trainer.state.log_history[0]


def with_one_row_moved(scores):
    """As a store whose rows are of another template, or one shard of which is of older weights."""
    logps = scores.logps.clone()
    logps[0, 3] += 0.01
    return replace(scores, logps=logps)


@pytest.mark.parametrize("place", ["folder", "memory"])
@pytest.mark.parametrize("lora", [False, True])
def test_log_ratio_zero_is_reported_and_another_is_an_error(place, lora, folder, tmp_path):
    def policy():
        model = mr.models.load(folder, device="cpu").model
        return get_peft_model(model, LoraConfig(target_modules="all-linear")) if lora else model

    what = str(folder) if place == "folder" else mr.models.load(folder, device="cpu")
    other = LanguageModel(small_llama(9, seed=1), word_tokenizer(WORDS), "other")
    scores = mr.References({"self": what, "other": other}, tokenisation=END).score(PAIRS)
    line = trained(policy(), scores, tmp_path)
    assert 0 <= line["start/self"] < 1e-5 and "start/other" not in line
    with pytest.raises(ModelError, match=r"weights of reference 'self', but .* differ by 0\.0\d+ a token in pair \d"):
        trained(policy(), with_one_row_moved(scores), tmp_path)


def test_it_is_no_matter_of_other_policies(folder, tmp_path):
    scores = with_one_row_moved(mr.References({"self": str(folder)}, tokenisation=END).score(PAIRS))
    model = mr.models.load(folder, device="cpu").model
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 1e-3
    assert "start/self" not in trained(model, scores, tmp_path)
    adapted = get_peft_model(mr.models.load(folder, device="cpu").model, LoraConfig(target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    assert "start/self" not in trained(adapted, scores, tmp_path)
    same = mr.models.load(folder, device="cpu").model
    assert "start/self" not in trained(same, replace(scores, identities=()), tmp_path)
    other = tuple({**identity, "start": False} for identity in scores.identities)  # another tokenisation, of its own
    assert "start/self" not in trained(same, replace(scores, identities=other), tmp_path)


def test_a_policy_with_more_rows_in_its_embedding_is_no_reference(folder, tmp_path):
    """Its softmax is over more tokens, so that its log-probabilities are lower, and that is right."""
    scores = mr.References({"self": str(folder)}, tokenisation=END).score(PAIRS)
    policy = mr.models.load(folder, device="cpu").model
    policy.resize_token_embeddings(len(WORDS) + 9, mean_resizing=False)
    line = trained(policy, scores, tmp_path)
    assert "start/self" not in line and abs(line["kl/self"]) > 0.1


def test_scores_of_another_template_are_refused_by_name_where_the_policy_is_that_reference(tmp_path, caplog):
    """Of the policy's weights: two halves of one ratio that read different texts. Another model may have its own template."""
    tokenizer, other = (
        byte_tokenizer(CHATML),
        byte_tokenizer(CHATML.replace("{{ m.role }}", "{{ m.role }}:").replace("assistant", "assistant:")),
    )
    pairs = [{"prompt": [{"role": "user", "content": f"{i}"}], "chosen": [{"role": "assistant", "content": "a"}],
              "rejected": [{"role": "assistant", "content": "b"}]} for i in range(3)]  # fmt: skip
    models = {"self": small_llama(len(tokenizer)), "another": small_llama(len(tokenizer), seed=1)}

    def begun(written, *names):
        scores = mr.References({name: LanguageModel(models[name], written, name) for name in names}).score(pairs)
        mr.training.PreferenceTrainer(copy.deepcopy(models["self"]), regularizer=mr.ReverseKL(), beta=0.3, scores=scores,
                                      train_dataset=pairs, processing_class=tokenizer, args=arguments(tmp_path))  # fmt: skip

    begun(tokenizer, "self", "another")
    assert not caplog.records
    begun(other, "another")
    assert "Reference 'another' has the policy's tokenizer and scored other token ids" in caplog.text
    with pytest.raises(ArgumentError, match=r"'self' has the weights and the tokenizer of the policy.*another chat template"):
        begun(other, "another", "self")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [8, 64])
def test_rounding_is_judged_by_dtype_and_length(dtype, length):
    """What a model rounds in half precision passes, an error that is no rounding does not; longer texts are judged closer."""
    model = small_llama(64, spread=0.3, context=128).float()
    rows = [Encoded((1,), (tuple((7 * i + j) % 61 + 3 for j in range(length)),), (False,)) for i in range(6)]
    exact, half = (score_completions(m, rows, layout="alone") for m in (model, copy.deepcopy(model).to(dtype)))
    lengths, unit = torch.full((6,), length), rounding_unit(model, {"dtype": str(dtype)[6:]}, "no")
    assert (
        unit
        == torch.finfo(dtype).eps
        == rounding_unit(model, {"dtype": "float32"}, {"bfloat16": "bf16"}.get(str(dtype)[6:], "fp16"))
    )
    found = check_start("a", half, exact, lengths, unit=unit)
    assert found > 0
    allowed = 16 * unit * min(1.0, float((exact.abs() / lengths).max().clamp_min(4)) / (2 * length**0.5))
    with pytest.raises(ModelError, match="reference 'a', but before the first step"):
        check_start("a", exact + 1.05 * allowed * lengths, exact, lengths, unit=unit)
    with pytest.raises(ModelError, match="reference 'a'"):  # in float32 no more than 1e-4
        check_start("a", exact + 2e-4 * lengths, exact, lengths, unit=torch.finfo(torch.float32).eps)


@pytest.mark.filterwarnings("ignore:references. the checkpoint was written under:multiref.errors.MultirefWarning")
def test_a_resumed_run_is_not_asked(folder, tmp_path):
    scores = mr.References({"self": str(folder)}, tokenisation=END).score(PAIRS)
    model = mr.models.load(folder, device="cpu").model
    trained(copy.deepcopy(model), scores, tmp_path, save_strategy="steps", save_steps=1)
    trainer = word_trainer(model, with_one_row_moved(scores), PAIRS, tmp_path, max_steps=2, learning_rate=1e-3)
    with pytest.warns(MultirefWarning, match="references: the checkpoint was written under"):  # and that is all
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert trainer.state.global_step == 2
    (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-1" / SUMS).unlink(missing_ok=True)  # as of a run with save_only_model
    with pytest.raises(ArgumentError, match="holds no optimizer's state"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with pytest.raises(OutputError, match="holds no whole checkpoint"):
        trainer.args.output_dir = str(tmp_path / "empty")
        trainer.train(resume_from_checkpoint=True)


def online(policy, reference, **options):
    return OnlineTrainer(
        LanguageModel(policy, word_tokenizer(WORDS), "policy"),
        mr.ReverseKL(),
        beta=0.1,
        references={"self": reference},
        prompts=["w0", "w1"],
        rewards=lambda prompts, completions: [float(len(c)) for c in completions],
        rule=Rule(RLOO(group=2)),
        args=OnlineArguments(steps=1, prompts_per_step=2, max_new_tokens=4, learning_rate=1e-3),
    )


def test_online_too(folder, monkeypatch):
    policy = mr.models.load(folder, device="cpu").model
    trainer = online(policy, str(folder))
    assert trainer.train()[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    trainer = online(mr.models.load(folder, device="cpu").model, str(folder))
    scored = trainer.scorer.tokens
    monkeypatch.setattr(trainer.scorer, "tokens", lambda rollouts: scored(rollouts) - 0.01)
    with pytest.raises(ModelError, match="weights of reference 'self', but before the first step"):
        trainer.train()
    assert trainer.step == 0


def test_a_reference_that_would_move_with_the_policy_is_refused(folder):
    loaded = mr.models.load(folder, device="cpu")
    with pytest.raises(ArgumentError, match="'self' is the policy itself, and would move with it"):
        online(loaded.model, loaded).train()
    with pytest.raises(ArgumentError, match="'self' is the policy itself"):
        online(get_peft_model(loaded.model, LoraConfig(target_modules="all-linear")), loaded).train()


def test_runs_of_one_process_may_differ_in_precision(folder):
    """accelerate holds one precision a process, and stopped at the second. On a CPU float16 is none, which is said."""
    kls = {}
    for precision in ("none", "bf16", "fp16"):
        policy = LanguageModel(mr.models.load(folder, device="cpu").model, word_tokenizer(WORDS), "policy")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer = OnlineTrainer(
                policy, mr.ReverseKL(), beta=0.1, references={"self": str(folder)}, prompts=["w0", "w1"],
                rule=Rule(RLOO(group=2)),
                args=OnlineArguments(steps=1, prompts_per_step=2, max_new_tokens=4, mixed_precision=precision),
            )  # fmt: skip
        assert any("'fp16' has no effect: on a CPU" in str(each.message) for each in said) == (precision == "fp16")
        kls[precision] = abs(trainer.train()[0]["kl"])
    assert max(kls["none"], kls["fp16"]) < 1e-5 < kls["bf16"]


def test_a_base_a_reference_or_a_reward_model_that_was_replaced_between_is_refused(folder, tmp_path):
    """A checkpoint holds an adapter, which belongs to its base; and online training went by references and rewards as they
    were."""

    def on_pairs(resume, **options):
        lora = LoraConfig(target_modules="all-linear", **options)
        policy = get_peft_model(mr.models.load(folder, device="cpu").model, lora)
        trainer = word_trainer(
            policy, scores, PAIRS, tmp_path / "pairs", max_steps=1 + resume, save_steps=1, save_strategy="steps"
        )
        trainer.train(resume_from_checkpoint=resume)

    def online(resume):
        judge = RewardModel(str(tmp_path / "judge"), device="cpu")
        options = {"beta": 0.1, "references": {"other": str(other)}, "prompts": ["w1 w2"], "rewards": judge}
        args = OnlineArguments(steps=1 + resume, prompts_per_step=1, max_new_tokens=2, save_every=1)
        trainer = OnlineTrainer(
            mr.models.load(folder, device="cpu"), mr.ReverseKL(), args=args, rule=Rule(RLOO(group=2)), **options
        )
        trainer.train(folder=tmp_path / "online", resume=resume)

    other = shutil.copytree(folder, tmp_path / "other")
    shutil.copytree(folder, tmp_path / "judge")
    opened = open_reward_model(str(folder), device="cpu").model
    opened.save_pretrained(tmp_path / "judge")
    scores = mr.References({"other": str(other)}, tokenisation=END).score(PAIRS)
    on_pairs(False)
    with pytest.raises(ArgumentError, match=r"^adapter default: the checkpoint was written under"):
        on_pairs(True, lora_alpha=99)
    online(False)
    torch.nn.init.ones_(opened.score.weight)
    opened.save_pretrained(tmp_path / "judge")
    with pytest.raises(ArgumentError, match=r"^reward models and judges: the checkpoint was written under"):
        online(True)
    torch.nn.init.zeros_(opened.score.weight)
    opened.save_pretrained(tmp_path / "judge")
    small_llama(9, spread=0.3, seed=3).save_pretrained(other)
    with pytest.raises(ArgumentError, match=r"^reference other: the checkpoint was written under"):
        online(True)
    small_llama(9, spread=0.3, seed=2).save_pretrained(folder)
    with pytest.raises(ArgumentError, match=r"^weights that do not train: the checkpoint was written under"):
        on_pairs(True)


def test_who_trains_once_more_does_not_begin_at_the_reference(folder, tmp_path):
    """The second call begins where the first one ended, which is no reference's weights."""
    scores = mr.References({"self": str(folder)}, tokenisation=END).score(PAIRS)
    trainer = word_trainer(mr.models.load(folder, device="cpu").model, scores, PAIRS, tmp_path, max_steps=1, learning_rate=1e-2)
    trainer.train()
    assert "start/self" in trainer.state.log_history[0]
    trainer.train()
    assert "start/self" not in trainer.state.log_history[0]


def test_an_optimizer_of_ones_own_does_not_go_on_at_the_rate_it_had(folder, tmp_path):
    """A checkpoint's optimizer brings its numbers with it, whoever made it."""
    scores = mr.References({"other": str(folder)}, tokenisation=END).score(PAIRS)

    def run(rate, steps):
        model = mr.models.load(folder, device="cpu").model
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        trainer = PreferenceTrainer(
            model, regularizer=mr.ReverseKL(), beta=0.1, scores=scores, train_dataset=PAIRS, tokenisation=END,
            processing_class=word_tokenizer(WORDS), optimizers=(optimizer, schedule),
            args=arguments(tmp_path, max_steps=steps, save_strategy="steps", save_steps=1),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=steps > 1)

    run(0.1, 1)
    run(0.1, 2)
    with pytest.raises(ArgumentError, match=r"^optimizers: the checkpoint was written under"):
        run(0.3, 3)


def test_a_judge_within_a_win_rate_or_an_oracle_is_compared_too(folder, tmp_path):
    """The policy plays by it, or labels are bought from it."""

    def judge():
        return RewardModel(str(tmp_path / "judge"), device="cpu")

    def online(resume):
        wins = WinRate(judge_by_reward(judge()), group=2)
        args = OnlineArguments(steps=1 + resume, prompts_per_step=1, max_new_tokens=2, save_every=1)
        options = {"beta": 0.1, "references": {"other": str(folder)}, "prompts": ["w1 w2"], "rewards": wins}
        policy = mr.models.load(folder, device="cpu")
        trainer = OnlineTrainer(policy, mr.ReverseKL(), args=args, rule=Rule(RLOO(group=2)), **options)
        trainer.train(folder=tmp_path / "online", resume=resume)

    def bought(labels):
        policy, other = (mr.models.load(folder, device="cpu") for _ in range(2))
        task = iterative.text_task(
            policy, {"other": other}, mr.ReverseKL(), beta=0.1, prompts=["w1 w2"],
            oracle=lambda world: iterative.RewardOracle(judge(), world.decode),
            setting=iterative.TextSetting(max_new_tokens=2),
        )  # fmt: skip
        plan = iterative.Plan(labels=labels, steps=1, batch=2)
        iterative.train(task, iterative.OnlineDPO(), plan, folder=tmp_path / "bought")

    opened = open_reward_model(str(folder), device="cpu").model
    shutil.copytree(folder, tmp_path / "judge")
    opened.save_pretrained(tmp_path / "judge")
    online(False)
    bought([2])
    torch.nn.init.ones_(opened.score.weight)
    opened.save_pretrained(tmp_path / "judge")
    with pytest.raises(ArgumentError, match=r"^reward models and judges: the checkpoint was written under"):
        online(True)
    with pytest.raises(StoreError, match=r"cannot be resumed .judge: the checkpoint was written under"):
        bought([2, 4])


def test_an_adapter_whose_base_is_another_at_each_load_is_refused(folder):
    """What PEFT took out of the base by a random decomposition stands in no checkpoint."""
    options = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa_niter_2", task_type="CAUSAL_LM")
    loaded, other = (mr.models.load(folder, device="cpu") for _ in range(2))
    policy = replace(loaded, model=get_peft_model(loaded.model, options))
    shared = {"beta": 0.1, "prompts": ["w1 w2"]}
    with pytest.raises(ArgumentError, match=r"^adapter .default.: init_lora_weights=.pissa_niter_2. takes a part out"):
        OnlineTrainer(
            policy, mr.ReverseKL(), references={"other": str(folder)}, args=OnlineArguments(max_new_tokens=2), **shared
        )
    with pytest.raises(ArgumentError, match=r"^adapter .default.: init_lora_weights=.pissa_niter_2. takes a part out"):
        iterative.text_task(policy, {"other": other}, mr.ReverseKL(), oracle=lambda world: None, **shared)


def test_a_policy_whose_adapter_repeats_layers_is_not_its_base(folder, tmp_path):
    """It is another model from the start, so a log-ratio that is not 0 is right."""
    scores = mr.References({"base": str(folder)}, tokenisation=END).score(PAIRS)
    options = LoraConfig(target_modules=["q_proj"], layer_replication=[[0, 2], [0, 2]])
    line = trained(get_peft_model(mr.models.load(folder, device="cpu").model, options), scores, tmp_path)
    assert "start/base" not in line and abs(line["kl/base"]) > 1e-3


def test_a_base_of_which_few_weights_were_moved_is_another_model(folder, tmp_path):
    """As an adapter that is merged below the one that trains may have done (WaveFT moves single weights)."""
    scores = mr.References({"base": str(folder)}, tokenisation=END).score(PAIRS)
    moved = mr.models.load(folder, device="cpu").model
    with torch.no_grad():
        moved.model.layers[0].mlp.down_proj.weight[5, :40] += 0.5
    line = trained(get_peft_model(moved, LoraConfig(target_modules=["q_proj"])), scores, tmp_path)
    assert "start/base" not in line and abs(line["kl/base"]) > 1e-3
