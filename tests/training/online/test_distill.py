"""Distillation: a warm-up and what it leaves, texts as states, held-out losses, and the floor by sequential Monte Carlo beside
what is reached."""

import contextlib
import math

import pytest
import torch

import multiref as mr
from multiref.data import Conversation
from multiref.errors import ArgumentError
from multiref.models import LanguageModel, Tokenisation, encode_many
from multiref.models.tabular import tabular_tokenizer
from multiref.references.local import LocalReference
from multiref.training.online import OnlineArguments, OnlineTrainer, Reinforce, Rule, TextStates, WarmUp, estimate_disagreement
from multiref.training.online.backward_induction import levels_of
from multiref.training.online.evaluate import floor_figures, floors, text_losses
from tests.conftest import make_llama, make_tokenizer
from tests.training.online.enumerable import Space
from tests.training.online.tables import kl_to, make_trainer, random_table, table_sampler

W = (0.3, 0.7)


def table_texts(prompts=2, vocabulary=3, length=3):
    """Every completion as a text of every prompt: states along them are all states, uniformly."""
    answers = torch.cartesian_prod(*[torch.arange(vocabulary)] * length).tolist()
    return {f"x{i}": ["".join(f"y{t}" for t in ids) for ids in answers] for i in range(prompts)}


@pytest.mark.slow
def test_a_warm_up_ends_at_the_renormalised_tokens_and_what_follows_at_the_pool():
    """On tables, reward zero. At states of texts forward KL brings the student to ∏_t ĝ_t, token by token;
    the exact rule then to the normalised pool of completions. Both are computed from the tables;
    between them are 0.077 nats."""
    tables = [random_table(5, spread=2.0), random_table(6, spread=2.0)]
    student = random_table(3)
    whole = torch.stack([table.sequence_logps().detach() for table in tables])
    pool = mr.exact.solve(torch.zeros_like(whole[0]), whole, mr.ReverseKL(W), beta=1.0).log_policy
    token = random_table(4)
    with torch.no_grad():
        token.table.copy_(sum(w * table.table.log_softmax(-1) for w, table in zip(W, tables)))
    tokens = token.sequence_logps().detach()
    between = float((tokens.exp() * (tokens - pool)).sum(-1).mean())
    warm_up = WarmUp(0.5, TextStates(table_texts(), share=1.0, max_new_tokens=3, end=False))
    halfway = {}
    trainer = make_trainer(
        student,
        tables,
        mr.ReverseKL(W),
        beta=1.0,
        steps=240,
        penalty="full_vocabulary",
        method=Reinforce(),
        warm_up=warm_up,
        prompts=["x0", "x1"] * 24,
        sampler=table_sampler(1),
        args={"prompts_per_step": 48, "learning_rate": 0.1, "max_grad_norm": None},
    )
    assert "120 of 240 steps under per_token_forward_kl" in trainer.describe()
    trainer.train(
        listener=lambda step, line: halfway.update({"kl": kl_to(student, tokens), "line": line}) if step == 120 else None
    )
    assert between > 0.05 and halfway["kl"] < 0.01 and "kl" not in halfway["line"]
    assert kl_to(student, pool) < 0.02 < between


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rewards": lambda completions, **_: [0.0] * len(completions)}, "no rewards"),
        ({"beta": 0.0}, "β > 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:beta is 0")
def test_a_warm_up_is_for_distillation(options, words):
    with pytest.raises(ArgumentError, match=words):
        make_trainer(random_table(1), [random_table(1)], mr.ReverseKL(), warm_up=WarmUp(0.5, table_sampler(1)), **options)


def test_warm_ups_that_cannot_be():
    with pytest.raises(ArgumentError, match="share"):
        WarmUp(1.5, table_sampler(1))
    with pytest.raises(ArgumentError, match="found 'reward'"):
        WarmUp(0.5, table_sampler(1), "reward")
    with pytest.raises(ArgumentError, match="max_new_tokens is -1"):
        TextStates({}, share=1.0, max_new_tokens=-1)  # would leave out a text's last token
    tokenizer, long = make_tokenizer(), TextStates({"the cat": " sat"}, share=1.0, max_new_tokens=128)
    for rule in (Rule(Reinforce(), warm_up=WarmUp(0.5, long)), Rule(Reinforce(), "per_token_reverse_kl", sampler=long)):
        for short, words in ((0, "the policy holds 128 tokens"), (1, "'r0' holds 128 tokens, but a rollout may have 1")):
            models = [make_llama(len(tokenizer), context=128 if k == short else 512) for k in range(3)]
            with pytest.raises(ArgumentError, match=words):
                distilling(models, tokenizer, rule)


def test_of_several_texts_one_is_drawn_and_stretches_have_no_end():
    tokenizer = make_tokenizer()
    states = TextStates(
        {"the cat": [" sat", " and the dog"], "a dog": " sat"}, share=1.0, max_new_tokens=9, unfinished={"a dog"}
    )
    torch.manual_seed(0)
    drawn = [states(None, tokenizer, ["the cat", "a dog"]) for _ in range(12)]
    assert {rollouts[0].completions for rollouts in drawn} == {(" sat",), (" and the dog",)}
    assert all(
        rollouts[0].ended == (True,) and rollouts[0].completion_ids[0][-1] == tokenizer.eos_token_id for rollouts in drawn
    )
    assert all(
        rollouts[1].ended == (False,) and rollouts[1].completion_ids[0][-1] != tokenizer.eos_token_id for rollouts in drawn
    )


def distilling(models, tokenizer, rule=Rule(Reinforce())):  # noqa: B008
    references = {f"r{k}": LocalReference(LanguageModel(model, tokenizer, "memory")) for k, model in enumerate(models[1:])}
    return OnlineTrainer(
        LanguageModel(models[0], tokenizer, "student"),
        mr.ReverseKL(W),
        beta=1.0,
        references=references,
        prompts=["the cat", "a dog"],
        args=OnlineArguments(steps=1, prompts_per_step=2, max_new_tokens=3),
        rule=rule,
    )


def test_held_out_losses_are_those_of_the_plain_logits():
    """Cut at three tokens; a text that ends there or before is scored on its end token, a stretch of a longer one is not."""
    tokenizer = make_tokenizer()
    models = [make_llama(len(tokenizer), seed=seed, std=0.1) for seed in range(3)]
    rows = [
        {"prompt": "the cat", "text": " sat on the mat"},
        {"prompt": "a dog", "text": " a"},
        {"prompt": "a dog", "text": " a", "unfinished": True},
    ]
    found = text_losses(distilling(models, tokenizer), rows)
    for name, model in zip(("student", "r0", "r1"), models):
        losses = []
        for row in rows:
            (item,) = encode_many(tokenizer, [(row["prompt"], (row["text"],))], Tokenisation(end=not row.get("unfinished")))
            ids = item.completions[0][:3]
            with torch.no_grad():
                logps = model(torch.tensor([[*item.prompt_ids, *ids]])).logits[0, len(item.prompt_ids) - 1 : -1].log_softmax(-1)
            losses.append(-float(logps.gather(1, torch.tensor(ids)[:, None]).mean()))
        assert found[name][0] == pytest.approx(sum(losses) / 3, abs=1e-5)


def test_a_conversation_among_texts_is_sampled():
    """It follows no text, and cannot be looked up among those that do."""
    tokenizer = make_tokenizer(chat=True)
    states = TextStates({"the cat": " sat"}, share=1.0, max_new_tokens=3)
    talk = Conversation([{"role": "user", "content": "a dog"}])
    text, said = states(make_llama(len(tokenizer), std=0.1), tokenizer, ["the cat", talk])
    assert text.completions == (" sat",) and said.prompt == talk and 0 < len(said.completion_ids[0]) <= 3


@pytest.mark.parametrize("penalty", [None, "full_vocabulary", "k2"])
def test_states_of_texts_are_no_samples_for_other_rules(penalty):
    """Whatever asks how likely the policy was to sample what it sees would end elsewhere, without a word."""
    tables = [random_table(5), random_table(6)]
    states = TextStates(table_texts(), share=0.5, max_new_tokens=3, end=False)
    shared = {"beta": 1.0, "method": Reinforce(), "sampler": states}
    with pytest.raises(ArgumentError, match=r"^sampler: found TextStates with"):
        make_trainer(random_table(3), tables, mr.ReverseKL(W), penalty=penalty, **shared)
    with pytest.raises(ArgumentError, match=r"^sampler: found TextStates with PerTokenReverseKL and 1 rewards"):
        rewards = [lambda prompts, completions: [0.0] * len(prompts)]
        make_trainer(random_table(3), tables, mr.ReverseKL(W), penalty="per_token_reverse_kl", rewards=rewards, **shared)
    make_trainer(random_table(3), tables, mr.ReverseKL(W), penalty="per_token_reverse_kl", **shared)


def test_figures_that_there_are_none_of():
    """Where every prompt is routed to one teacher the floor is zero and nothing a multiple of it; a context that holds no row
    has no loss."""
    tokenizer = make_tokenizer()
    trainer = distilling([make_llama(len(tokenizer), seed=seed, std=0.1) for seed in range(3)], tokenizer)
    found = floor_figures(trainer, [{"prompt": "the cat"}, {"prompt": "a dog"}], torch.zeros(2).double(), samples=2)
    assert set(found) == {"kl", "floor"} and found["floor"] == (0.0, 0.0, 0.0)
    with pytest.raises(ArgumentError, match="holds none of the 1"):
        text_losses(trainer, [{"prompt": "the cat " * 2000, "text": " sat"}])


def test_the_floor_of_transformers_against_enumeration():
    """Two transformers with caches over 5 tokens, length 5: −log F of all 3,125 completions,
    and by particles that are resampled on the way."""
    space = Space(5, 5, 2)
    models = [space.model(seed, hidden=8, std=1.0) for seed in (1, 2)]
    with torch.no_grad():
        whole = torch.stack([space.whole(model) for model in models])
    truth = mr.divergences.disagreement(whole, W)
    for place in (0, 5):
        estimate, error = estimate_disagreement(
            models, space.tokenizer(), space.prompts()[place], new_tokens=5, weights=W, particles=20_000
        )
        assert float(truth[place]) > 1 and error < 0.05 and abs(estimate - float(truth[place])) < 4 * error


def test_a_completion_that_has_ended_weighs_no_more():
    """Tables whose y0 is an end token: F is summed over completions cut after their first y0,
    by recursion over the pool's rows."""
    tables = [random_table(1, prompts=1, spread=1.5), random_table(2, prompts=1, spread=1.5)]
    tokenizer = tabular_tokenizer(tables[0])
    tokenizer.eos_token = "y0"
    levels = [torch.stack(level) for level in zip(*(levels_of(table.table.detach()[0], 3) for table in tables))]
    pools = [sum(w * level[k] for k, w in enumerate(W)).exp() for level in levels]

    def mass(t, prefix):
        row = pools[t][prefix]
        return sum(float(row[v]) * (1.0 if v == 0 or t == 2 else mass(t + 1, 3 * prefix + v)) for v in range(3))

    truth = -math.log(mass(0, 0))
    whole = float(mr.divergences.disagreement(torch.stack([t.sequence_logps().detach() for t in tables]), W)[0])
    estimate, error = estimate_disagreement(tables, tokenizer, "x0", new_tokens=3, weights=W, particles=3000)
    assert abs(estimate - truth) < 4 * error < 0.2 * abs(whole - truth), (
        "as far from the value without an end as to tell them apart"
    )


def test_the_estimate_of_f_is_unbiased_with_resampling():
    """The mean of F̂ over 100 runs of 24 particles, which resample, within 4 standard errors of F of two enumerable tables.
    Routed to one, it is 1."""
    tables = [random_table(1, prompts=1, length=4, spread=1.5), random_table(2, prompts=1, length=4, spread=1.5)]
    tokenizer = tabular_tokenizer(tables[0])
    truth = math.exp(-float(mr.divergences.disagreement(torch.stack([t.sequence_logps().detach() for t in tables]), W)[0]))
    runs = [
        estimate_disagreement(tables, tokenizer, "x0", new_tokens=4, weights=W, particles=24, seed=s)[0] for s in range(100)
    ]
    values = torch.tensor(runs, dtype=torch.float64).neg().exp()
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 100**0.5 < 0.2 * truth
    assert estimate_disagreement(tables, tokenizer, "x0", new_tokens=4, weights=(1.0, 0.0), particles=8) == pytest.approx(
        (0.0, 0.0), abs=1e-12
    )


def test_what_is_reached_beside_its_floor():
    """A student that is one of the teachers: its weighted KL to both over the floor, from enumeration."""
    tables = [random_table(1, spread=1.2), random_table(2, spread=1.2)]
    whole = torch.stack([table.sequence_logps().detach() for table in tables])
    floor = float(mr.divergences.disagreement(whole, W).mean())
    kl = W[1] * float((whole[0].exp() * (whole[0] - whole[1])).sum(-1).mean())
    trainer = make_trainer(tables[0], tables, mr.ReverseKL(W), beta=1.0)
    rows = [{"prompt": "x0"}, {"prompt": "x1"}]
    found = floor_figures(trainer, rows, floors(trainer, rows, particles=800), samples=800)
    assert found["floor"][0] == pytest.approx(floor, rel=0.1) and found["kl"][0] == pytest.approx(kl, rel=0.1)
    assert found["kl/floor"][0] == pytest.approx(kl / floor, rel=0.15)


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"share": 0.8}, "warm_up"), ({"penalty": "per_token_reverse_kl"}, "warm_up"), ({"end": True}, "warm_up"),
     ({"texts": table_texts(length=2)}, "warm_up"), ({"sampler": 0.5}, "sampler"), ({}, None)],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_run_that_goes_on_has_the_same_warm_up_and_texts(changed, name, tmp_path):
    def run(steps, share=0.5, penalty="per_token_forward_kl", end=False, texts=None, sampler=0.3, resume=False):
        warm = WarmUp(share, TextStates(texts or table_texts(), share=1.0, max_new_tokens=3, end=end), penalty)
        states = TextStates(table_texts(), share=sampler, max_new_tokens=3, end=False)
        make_trainer(
            random_table(3), [random_table(5), random_table(6)], mr.ReverseKL(W), steps=steps, penalty="per_token_reverse_kl",
            method=Reinforce(), warm_up=warm, sampler=states, args={"save_every": 1},
        ).train(folder=tmp_path, resume=resume)  # fmt: skip

    run(1)
    with pytest.raises(ArgumentError, match=f"^{name}: the checkpoint") if name else contextlib.nullcontext():
        run(2, **changed, resume=True)
