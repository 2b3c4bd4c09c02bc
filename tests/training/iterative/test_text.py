"""Hugging Face models behind the interface: scores are the model's, samples end where they say,
adapters share one base and nothing else."""

import peft
import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, ModelError, MultirefWarning, StoreError, VocabularyMismatch
from multiref.models import LanguageModel, load
from multiref.training.iterative import (
    FunctionOracle,
    Plan,
    RewardOracle,
    TextPolicy,
    TextReward,
    TextSetting,
    TextWorld,
    method_named,
    save_policy,
    text_task,
    train,
)
from multiref.training.iterative.text import frozen_references, with_adapter
from tests.conftest import make_gpt2, make_llama, make_tokenizer

PROMPTS = ["Once upon a time", "the cat", "what is two plus three?"]
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def world(tokenizer):
    return TextWorld(PROMPTS, tokenizer, max_new_tokens=5)


def language_model(tokenizer, seed=0):
    return LanguageModel(make_llama(len(tokenizer), seed=seed, std=0.2).eval(), tokenizer, "tiny")


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_scores_are_those_of_one_completion_at_a_time(make, world, tokenizer):
    """Left padding, right padding and the end token against a forward pass of prompt and completion alone;
    GPT-2 knows absolute positions."""
    model = make(len(tokenizer), seed=0, std=0.2).eval()
    policy = TextPolicy(world, model)
    x = torch.tensor([2, 1])
    y = policy.sample(x, 4, torch.Generator().manual_seed(3))
    found = policy.logps(x, y)
    for b, prompt in enumerate(x.tolist()):
        for n in range(4):
            answer = [t for t in y[b, n].tolist() if t >= 0]
            ids = torch.tensor([[*world.ids[prompt], *answer]])
            laws = model(input_ids=ids).logits[0].log_softmax(-1)
            start = len(world.ids[prompt])
            alone = sum(laws[start + t - 1, token].detach() for t, token in enumerate(answer))
            assert float(found[b, n].detach()) == pytest.approx(float(alone), abs=2e-5)


def test_samples_end_with_their_end_token_and_follow_the_generator(world, tokenizer):
    model = language_model(tokenizer).model
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] += 0.5
    policy, x = TextPolicy(world, model), torch.tensor([0, 1, 2])
    one, two = (policy.sample(x, 20, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (3, 20, 5)
    for row in one.flatten(0, 1).tolist():
        kept = [t for t in row if t >= 0]
        assert row == kept + [-1] * (5 - len(kept))
        assert tokenizer.eos_token_id not in kept[:-1]
        assert len(kept) == 5 or kept[-1] == tokenizer.eos_token_id


def test_copies_of_an_adapter_share_the_base_and_train_apart(world, tokenizer):
    model = with_adapter(language_model(tokenizer).model, LORA)
    base = sum(p.numel() for name, p in model.named_parameters() if "lora" not in name)
    start = TextPolicy(world, model, adapter="start")
    other = start.copy()
    third = other.copy()
    assert len({start.adapter, other.adapter, third.adapter}) == 3
    assert sum(p.numel() for name, p in model.named_parameters() if "lora" not in name) == base
    x = torch.tensor([0, 1])
    y = start.sample(x, 3, torch.Generator().manual_seed(0))
    before = start.logps(x, y).detach()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.02)
    (-other.logps(x, y).mean()).backward()
    optimizer.step()
    assert torch.equal(start.logps(x, y), before) and torch.equal(third.logps(x, y), before)
    assert float(other.logps(x, y).detach().mean()) > float(before.mean())


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}],
)
def test_a_copy_has_all_of_an_adapter(options, world, tokenizer):
    """Parts that PEFT keeps by the adapter's name at the end (…lora_embedding_A.start) are trained and copied, too: a copy was
    7.6 nats off."""
    model = with_adapter(language_model(tokenizer).model, {"r": 4, **options})
    start = TextPolicy(world, model, adapter="start")
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in start.parameters()} == {id(p) for p in trained}
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    x = torch.tensor([0, 1])
    y = start.sample(x, 3, torch.Generator().manual_seed(0))
    before = start.logps(x, y).detach()
    assert torch.equal(start.copy().logps(x, y), before) and torch.equal(start.logps(x, y), before)


def task_of(policy, reference, *, lora=LORA):
    oracle = lambda world: FunctionOracle(lambda prompts, first, second: [0.5] * len(prompts), world.decode)  # noqa: E731
    setting = TextSetting(max_new_tokens=5, lora=lora)
    return text_task(policy, {"first": reference}, mr.ReverseKL(), beta=0.2, prompts=PROMPTS, oracle=oracle, setting=setting)


@pytest.mark.parametrize("lora", [LORA, None])
def test_a_policy_that_is_a_reference_starts_at_log_ratio_zero(lora, tokenizer, caplog):
    """As of the other trainers, by the same check: said where it holds, an error where the reference computes otherwise."""
    caplog.set_level("INFO", "multiref")
    task_of(language_model(tokenizer), language_model(tokenizer), lora=lora)
    assert "The policy starts as reference 'first': log-ratio 0, at most" in caplog.text
    other = language_model(tokenizer)
    other.model.lm_head.register_forward_hook(lambda module, given, logits: 2 * logits)
    with pytest.raises(ModelError, match=r"weights of reference 'first', but .* differ by \d\S* a token"):
        task_of(language_model(tokenizer), other, lora=lora)
    caplog.clear()
    task_of(language_model(tokenizer), language_model(tokenizer, 1), lora=lora)
    assert not caplog.records


def test_a_reference_that_is_the_policy_itself_is_refused_where_an_adapter_is_put_on_it(tokenizer):
    """It would wear the adapter, too: a penalty of 0 however far the policy goes."""
    policy = language_model(tokenizer)
    with pytest.raises(ArgumentError, match="'first' is the policy itself, and would move with it"):
        task_of(policy, policy)


def test_reward_features_are_standardised_on_the_completions_given(world, tokenizer):
    policy = TextPolicy(world, language_model(tokenizer).model)
    x = torch.arange(3)
    y = policy.sample(x, 30, torch.Generator().manual_seed(0))
    reward = TextReward(world, language_model(tokenizer, 1).model, (x, y))
    features = reward.features(x, y).flatten(0, 1)
    assert torch.allclose(features.mean(0), torch.zeros(features.shape[1]), atol=1e-4)
    assert torch.allclose(features.std(0), torch.ones(features.shape[1]), atol=1e-3)
    assert torch.equal(reward(x, y), torch.zeros(3, 30))


def test_a_completion_goes_through_the_frozen_model_once_and_prompts_are_told_apart(world, tokenizer):
    policy = TextPolicy(world, language_model(tokenizer).model)
    x = torch.arange(3)
    y = policy.sample(x, 4, torch.Generator().manual_seed(0))
    y[1, 0], y[2, 1] = y[0, 0], y[0, 0]  # the same completion after three prompts
    reward, fresh = (TextReward(world, language_model(tokenizer, 1).model, (x, y)) for _ in range(2))
    one = reward.features(x, y)
    reward._frozen.model = None  # whatever is asked again is remembered
    assert torch.equal(reward.features(x.flip(0), y.flip(0)), one.flip(0))
    for prompt, place in ((0, 0), (1, 0), (2, 1)):
        fresh._frozen.seen.clear()
        alone = fresh.features(x[prompt : prompt + 1], y[prompt : prompt + 1, place : place + 1])
        assert torch.allclose(alone[0, 0], one[prompt, place], atol=1e-3)
    assert not torch.allclose(one[0, 0], one[1, 0], atol=1e-2)


def test_the_frozen_model_reads_some_completions_at_a_time(world, tokenizer, monkeypatch):
    """A pass keeps the hidden states of every layer: of a thousand completions at once no memory would hold them."""
    model, rows = language_model(tokenizer, 1).model, []
    x = torch.arange(3)
    y = TextPolicy(world, model).sample(x, 4, torch.Generator().manual_seed(0))
    whole = TextReward(world, model, (x, y)).features(x, y)
    monkeypatch.setattr("multiref.training.iterative.text._TOGETHER", 5)

    def watch(module, given, named):
        rows.extend([len(named["input_ids"])] if named.get("output_hidden_states") else [])  # not of an audit

    model.register_forward_pre_hook(watch, with_kwargs=True)
    assert torch.allclose(TextReward(world, model, (x, y)).features(x, y), whole, atol=1e-3)
    different = torch.cat([x.repeat_interleave(4)[:, None], y.view(12, -1)], 1).unique(dim=0)
    assert max(rows) <= 5 and sum(rows) == len(different)


def test_features_do_not_depend_on_the_completions_beside_them(world, tokenizer):
    """Of a model whose rows look at each other, and at padding where the other is shorter: each has a pass of its own."""

    def beside(module, given):
        return given[0] + given[0].mean(0), *given[1:]

    model, x = language_model(tokenizer, 1).model, torch.arange(3)
    y = TextPolicy(world, language_model(tokenizer).model).sample(x, 4, torch.Generator().manual_seed(0))
    model.model.layers[-1].register_forward_pre_hook(beside)
    reward = TextReward(world, model, (x, y))
    found = reward._frozen(x.repeat_interleave(4), y.flatten(0, 1))
    for row, prompt, answer in zip(found, x.repeat_interleave(4).tolist(), y.flatten(0, 1).tolist()):
        ids = [t for t in answer if t >= 0]
        alone = model(input_ids=torch.tensor([[*world.ids[prompt], *ids]]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(row, alone[0, -len(ids) :].detach().mean(0))


def made_task(tokenizer, *, lora=LORA, counted=None):
    """Hidden reward: how many words a completion has. Two references."""

    def hidden(prompts, completions):
        return [float(len(text.split())) for text in completions]

    def prefer(prompts, first, second):
        if counted is not None:
            counted.append(len(prompts))
        a, b = hidden(prompts, first), hidden(prompts, second)
        return [float(torch.sigmoid(torch.tensor(p - q))) for p, q in zip(a, b)]

    return text_task(
        language_model(tokenizer),
        {"first": language_model(tokenizer), "second": language_model(tokenizer, 1)},
        mr.ReverseKL((0.7, 0.3)),
        beta=0.2,
        prompts=PROMPTS,
        oracle=lambda world: FunctionOracle(prefer, world.decode),
        setting=TextSetting(max_new_tokens=5, lora=lora, hidden=hidden, held_out=12),
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("bilevel", {"objective": "stop_gradient"}, marks=pytest.mark.slow),
        pytest.param("bilevel", {"objective": "likelihood", "estimator": "two_policies"}, marks=pytest.mark.slow),
        ("bilevel", {"objective": "win_rate", "estimator": "shared_rollouts", "loop": "momentum"}),
        pytest.param("iterative", {}, marks=pytest.mark.slow),  # tests/runs/test_iterative.py has it from a file
        pytest.param("two-stage", {}, marks=pytest.mark.slow),
        ("xpo", {}),
        pytest.param("sail", {"design": "PP"}, marks=pytest.mark.slow),  # its draws and losses: test_methods.py
    ],
)
def test_methods_spend_their_labels_and_go_on_exactly(name, options, tokenizer, tmp_path):
    sizes = {"prompts": 3, "rollouts": 2, "batch": 4, "steps": 2, "reward_steps": 3}
    optimizer = "muon" if name in ("two-stage", "xpo") else "adam"  # adapters alone: every parameter is a hidden matrix
    plan = Plan(labels=[8, 16], learning_rate=1e-2, optimizer=optimizer, **sizes)
    counted: list[int] = []
    state, history = train(
        made_task(tokenizer, counted=counted), method_named(name, **options), plan, folder=tmp_path / "whole"
    )
    assert sum(counted) == state.labels_used == 16
    assert {"kl/first", "kl/second", "hidden reward", "true objective"} <= set(history.lines[-1])

    half = made_task(tokenizer)
    good, asked = half.oracle, []

    def failing(*given):
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return good(*given)

    half.oracle = failing
    with pytest.raises(KeyboardInterrupt):
        train(half, method_named(name, **options), plan, folder=tmp_path / "half")
    again, later = train(made_task(tokenizer), method_named(name, **options), plan, folder=tmp_path / "half")
    assert [line["hidden reward"] for line in later.lines] == [line["hidden reward"] for line in history.lines]
    assert all(torch.equal(a, b) for a, b in zip(state.policy.parameters(), again.policy.parameters(), strict=True))


@pytest.mark.parametrize("begins", ["pissa", "olora"])
def test_a_copy_of_an_adapter_that_changed_its_base_is_the_same_policy(begins, world, tokenizer, tmp_path):
    """PEFT would change the base again, and with it the policy that is copied; what is saved still says how it began."""
    for part in (language_model(tokenizer).model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base", device="cpu").model
    options = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=begins, task_type="CAUSAL_LM")
    policy = TextPolicy(world, peft.get_peft_model(base, options), adapter="default")
    x = torch.arange(3)
    y = policy.sample(x, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05)
        before = policy.logps(x, y)
        other = policy.copy()
        assert torch.equal(other.logps(x, y), before) and torch.equal(policy.logps(x, y), before)
        for parameter in other.parameters():
            parameter.add_(0.05)
        after = other.logps(x, y)
        save_policy(other, tmp_path / "saved")
        again = TextPolicy(world, load(tmp_path / "saved", device="cpu").model).logps(x, y)
    assert torch.allclose(again, after, atol=1e-4) and not torch.allclose(after, before, atol=1e-2)


def test_an_adapter_that_cannot_be_held_twice_is_refused(world, tokenizer):
    ada = peft.AdaLoraConfig(target_modules=["q_proj"], total_step=4, tinit=0, tfinal=1, task_type="CAUSAL_LM")
    policy = TextPolicy(world, peft.get_peft_model(language_model(tokenizer).model, ada), adapter="default")
    with pytest.raises(ModelError, match=r"adapter \(ADALORA\) cannot be held twice on one base"):
        policy.copy()


@pytest.mark.parametrize("lora", [LORA, None])
def test_what_is_saved_is_the_policy(lora, tokenizer, tmp_path):
    plan = Plan(labels=[8], steps=3, prompts=3, rollouts=2, reward_steps=5, learning_rate=3e-2)
    task = made_task(tokenizer, lora=lora)
    state, _ = train(task, method_named("iterative"), plan)
    save_policy(state.policy, tmp_path)
    x = torch.arange(3)
    y = state.policy.sample(x, 2, torch.Generator().manual_seed(0))
    mine = state.policy.logps(x, y)
    assert not torch.allclose(mine, state.start.logps(x, y), atol=1e-4)
    if lora is None:
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(language_model(tokenizer).model, tmp_path)
    assert torch.allclose(TextPolicy(state.policy.world, model).logps(x, y), mine, atol=1e-5)


def test_a_reference_of_another_vocabulary_is_refused(world, tokenizer):
    other = make_tokenizer(chat=True)
    other.add_tokens(["zebra"])
    with pytest.raises(VocabularyMismatch, match="'the policy' and 'other' have different vocabularies: id"):
        frozen_references(world, {"other": LanguageModel(language_model(tokenizer).model, other, "other")})


def test_what_is_measured_is_by_plain_passes(tokenizer):
    """KL to the reference and the penalty are the mean of log π − log π_1 over the rollouts, the true objective is the mean
    of r − β times that, the reward's error the deviation of r̂ − r within a prompt: here r̂ is 0."""
    policy, reference = language_model(tokenizer, 1), language_model(tokenizer, 2)
    hidden = lambda prompts, completions: [float(len(text)) for text in completions]  # noqa: E731
    oracle = lambda world: RewardOracle(hidden, world.decode)  # noqa: E731
    setting = TextSetting(max_new_tokens=5, hidden=hidden, held_out=9)
    task = text_task(policy, {"first": reference}, mr.ReverseKL(), beta=0.2, prompts=PROMPTS, oracle=oracle, setting=setting)
    state, history = train(task, method_named("iterative"), Plan(labels=[6], steps=1, prompts=3, rollouts=2, reward_steps=1))
    found, everyone = history.lines[0], torch.arange(3)
    y = state.start.sample(everyone, 3, torch.Generator().manual_seed(1))
    ratio = torch.zeros(3, 3)
    for place in range(9):
        before = list(state.policy.world.ids[place // 3])
        ids = [token for token in y.flatten(0, 1)[place].tolist() if token >= 0]
        for sign, model in ((1, state.start.model), (-1, reference.model)):
            with torch.no_grad():
                laws = model(torch.tensor([before + ids])).logits[0, len(before) - 1 :].log_softmax(-1)
            ratio.view(-1)[place] += sign * sum(laws[at, token] for at, token in enumerate(ids))
    true = torch.tensor(hidden(*state.policy.world.decode(everyone.repeat_interleave(3), y.flatten(0, 1)))).view(3, 3)
    assert found["kl/first"] == found["penalty"] == pytest.approx([float(ratio.mean())], abs=1e-4)
    assert found["hidden reward"] == pytest.approx([float(true.mean())])
    assert found["true objective"] == pytest.approx([float((true - 0.2 * ratio).mean())], abs=1e-4)
    assert found["reward error here"] == pytest.approx([float(true.var(-1).mean().sqrt())], rel=1e-5)


def test_the_error_of_a_mean_is_that_of_prompts_held_fixed():
    """Prompts of different means and spreads: the estimate agrees with the spread of the mean over 4,000 repetitions,
    between-prompt differences left out."""
    from multiref.training.iterative.text import error_of_mean

    generator = torch.Generator().manual_seed(0)
    level, spread = torch.tensor([0.0, 5.0, -2.0])[:, None], torch.tensor([0.1, 1.0, 2.0])[:, None]
    drawn = level + spread * torch.randn(4000, 3, 8, generator=generator)
    estimates = torch.stack([error_of_mean(each) ** 2 for each in drawn]).mean().sqrt()
    assert float(estimates) == pytest.approx(float(drawn.mean((-1, -2)).std()), rel=0.04)


@pytest.mark.parametrize("name", ["prompts", "dtype", "references", "max_new_tokens", "judge"])
def test_a_state_of_other_texts_or_models_is_refused_by_name(name, tokenizer, tmp_path):
    """Labels are kept by the number of their prompt: as many other prompts would get them."""

    def run(labels, changed=None):
        policy, prompts = language_model(tokenizer), PROMPTS[::-1] if changed == "prompts" else PROMPTS
        policy.model.to(torch.bfloat16 if changed == "dtype" else torch.float32)
        references = {"second" if changed == "references" else "first": language_model(tokenizer, 1)}
        temperature = 2.0 if changed == "judge" else 1.0
        oracle = lambda world: RewardOracle(lambda _, said: [0.0] * len(said), world.decode, temperature=temperature)  # noqa: E731
        setting = TextSetting(max_new_tokens=4 if changed == "max_new_tokens" else 5)
        task = text_task(policy, references, mr.ReverseKL(), beta=0.2, prompts=prompts, oracle=oracle, setting=setting)
        train(task, method_named("online-dpo"), Plan(labels=labels, steps=1, batch=4), folder=tmp_path)

    run([4])
    with pytest.raises(StoreError, match=f"cannot be resumed .{name}: the checkpoint was written under"):
        run([4, 8], name)


def test_steps_that_move_no_weight_are_said(tokenizer):
    """As of the other trainers: what bfloat16 cannot take up."""
    task = made_task(tokenizer, lora=None)
    task.policy.model.to(torch.bfloat16)
    with pytest.warns(MultirefWarning, match="of the entries with a gradient did not move"):
        train(task, method_named("online-dpo"), Plan(labels=[4], steps=1, batch=4, learning_rate=1e-9))
