"""lm-evaluation-harness (0.4.13): a policy, a reference, the token pool and the optimum as its models. Extra `lm-eval`.

    lm = PoolLM({"policy": "runs/run/model"})                    one model: that model itself
    lm = PoolLM({"a": "models/a", "b": "models/b"}, mr.ReverseKL([0.5, 0.5]))
    lm = OptimumLM({"a": "models/a", "b": "models/b"}, mr.ReverseKL([0.5, 0.5]), reward, beta=0.5)
    found = evaluate(lm, ["my_task"], task_manager=TaskManager(include_path="tasks/"))

The optimum has a probability of complete answers, known up to one factor a prompt. So choices are compared as complete answers,
end token included, and only by `acc`. Give the models beside it `complete=True`: they are then asked the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from multiref.decoding import sample
from multiref.decoding.rewarding import Rewarding
from multiref.decoding.streaming import open_pool, read_tokens, spell_tokens
from multiref.errors import ArgumentError, EmptyPoolError
from multiref.models.chat import Chat
from multiref.models.encoding import as_tokenizer, encode_many, start_ids
from multiref.models.spec import TOKENISATION, Generation
from multiref.references.collection import References
from multiref.references.protocol import Item
from multiref.regularizers import Regularizer, ReverseKL, check_beta

__all__ = ["OptimumLM", "PoolLM", "evaluate"]

LONGEST = 2048  # tokens of a context that no configuration names, as the harness has it
_NEW = 256  # tokens, where a task names no number, as the harness has it
# settings that change nothing where they are 1; of a single beam whatever they are; all others where they are 0
_ONE = {"best_of", "encoder_repetition_penalty", "n", "num_beam_groups", "num_beams", "num_return_sequences"}
_ONE |= {"repetition_penalty", "skip_special_tokens", "typical_p"}
_IDLE = {"early_stopping", "length_penalty", "use_cache"}


class _Harness(TemplateLM):  # type: ignore[misc]
    """What both have: tokenizer, chat template, what a task asks of a generation."""

    def __init__(self, refs: References | Mapping[str, Any], seed: int) -> None:
        super().__init__()
        collection = refs if isinstance(refs, References) else References(refs)
        self.refs = References({name: collection.open(name) for name in collection.names})
        local = self.refs.local()
        self.tokenizer, self.seed, self.asked = as_tokenizer(local[0].tokenizer), seed, 0
        limits = [each.max_length for each in local if each.max_length is not None]
        self.max_length = min(limits, default=LONGEST)

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end token. ArgumentError without one."""
        if self.tokenizer.eos_token_id is None:
            raise ArgumentError(
                "The tokenizer has no end token (eos_token), and the harness needs one. "
                "Set tokenizer.eos_token, and save it with the model."
            )
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The start token, or the end token where there is none."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A start token is not put where the text writes it, an end token nowhere. DataError for what is no text."""
        start = list(() if add_special_tokens is False else start_ids(self.tokenizer))
        try:
            ids = list(self.tokenizer.encode(string, add_special_tokens=False))
            return ids if ids[: len(start)] == start else [*start, *ids]
        except TypeError:
            encode_many(self.tokenizer, [(string, ())])  # says where
            raise

    @property
    def tokenizer_name(self) -> str:
        """A name that may stand in a file's name."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """By the first reference's own template, within bounds. ModelError where it refuses."""
        opened = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return Chat.of(self.tokenizer, (), TOKENISATION).write(chat_history, **opened)

    def _asked_for(self, given: Mapping[str, Any], new: int = _NEW) -> tuple[Generation, tuple[str, ...]]:
        """What a task's generation_kwargs mean, and its stop strings. ArgumentError for those that are not done."""
        try:
            found = dict(normalize_gen_kwargs(dict(given), new))
            stops = tuple(each for each in found.pop("until") if each)
            temperature = float(found.pop("temperature", 1.0)) * bool(found.pop("do_sample"))
            top_k, top_p = (found.pop(name, None) for name in ("top_k", "top_p"))
            top_k, top_p = 0 if top_k is None else int(top_k), 1.0 if top_p is None else float(top_p)
            generation = Generation(int(found.pop("max_gen_toks")), temperature, top_k, top_p)
        except (TypeError, ValueError, AttributeError) as error:
            raise ArgumentError(f"generation_kwargs: {dict(given)} is not understood ({error}).") from None
        bent = {name: value for name, value in found.items() if name not in _IDLE}
        if odd := [name for name, value in bent.items() if value not in (None, 1 if name in _ONE else 0)]:
            raise ArgumentError(f"generation_kwargs: {', '.join(odd)} not supported here; leave them out of the task.")
        return generation, stops


class PoolLM(_Harness):
    """The references pooled and renormalised at each token, of one reference that model itself.

    Args:
        complete: score a continuation as a complete answer: its end token too, and encoded as this library does. For
            comparisons with the optimum.
        seed: of what is sampled where a task asks for it.
    """

    def __init__(
        self,
        refs: References | Mapping[str, Any],
        regularizer: Regularizer | None = None,
        *,
        complete: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(refs, seed)
        self.complete = complete
        self._opened = open_pool(self.refs, regularizer or ReverseKL())
        self.bench = self._opened.__enter__()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding gives it) of each (context, continuation)."""
        if not self.complete:  # of nothing behind nothing the harness would look up the first token
            said = [bool(context or self.tok_encode(rest, False)) for context, rest in (each.args for each in requests)]
            told = iter(super().loglikelihood([each for each, some in zip(requests, said) if some], disable_tqdm=disable_tqdm))
            return [next(told) if some else (0.0, True) for some in said]
        encoded = encode_many(self.tokenizer, [(context, (rest,)) for context, rest in (each.args for each in requests)])
        rows = ((each.args, list(item.prompt_ids), list(item.completions[0])) for each, item in zip(requests, encoded))
        return [self._read(*row) for row in rows]

    def _loglikelihood_tokens(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [self._read(strings, context, rest) for strings, context, rest in requests]

    def _read(self, strings: Any, context: list[int], rest: list[int]) -> tuple[float, bool]:
        """A context that does not fit loses its begin, as in the harness. One without a token (spaces) is like none."""
        ids = tuple([*(context or [self.prefix_token_id]), *rest][-(self.max_length + 1) :])
        if len(rest) >= len(ids):
            raise ArgumentError(
                f"A continuation of {len(rest)} tokens does not fit a context of {self.max_length}. "
                "Take a model with a longer context."
            )
        drawn = read_tokens(self.bench, ids, 1, first=len(ids) - len(rest)) if rest else []
        answer = (math.fsum(each.logp for each in drawn), all(each.token == each.top[0][0] for each in drawn))
        if strings is not None:
            self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answer

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log-probability of whole texts, in the harness's windows."""
        totals = []
        for (text,) in (each.args for each in requests):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            totals.append(sum(self._read(None, *make_disjoint_window(window))[0] for window in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Up to the first stop string, an end token or the most tokens; greedy unless the task samples."""
        texts = []
        for context, given in (each.args for each in requests):
            generation, stops = self._asked_for(given)
            room = self.max_length - generation.max_new_tokens
            if room < 1:
                raise ArgumentError(
                    f"{generation.max_new_tokens} new tokens leave no room in a context of {self.max_length}. "
                    "Lower max_gen_toks of the task."
                )
            ids = tuple(self.tok_encode(context)[-room:]) or (self.prefix_token_id,)
            self.asked += 1
            generator = self.bench.generator(self.seed + self.asked)
            *_, last = spell_tokens(self.bench, ids, generation, generator=generator, stops=stops)
            texts.append(last.text.shown)
            self.cache_hook.add_partial("generate_until", (context, given), texts[-1])
        return texts


class OptimumLM(_Harness):
    """π* ∝ P_0 e^{r/β}: answers are drawn (`multiref.decoding.sample`), never greedy; choices are compared by
    log P_0(y) + r(y)/β, y a complete answer, which is log π* up to one constant a prompt.

    Args:
        options: of `sample`, for generation: method, n, islands, reward_max, …

    Refused, each with its reason: perplexities, metrics other than `acc`, choices that have different contexts.
    """

    def __init__(
        self,
        refs: References | Mapping[str, Any],
        regularizer: Regularizer,
        reward: Callable[..., Any] | None = None,
        beta: float | None = None,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(refs, seed)
        if regularizer.alpha != 1:
            raise ArgumentError(
                f"regularizer: {regularizer.name} has no optimum that is a product of pool and reward. "
                "Expected ReverseKL or PooledKL."
            )
        if (reward is None) != (beta is None):
            raise ArgumentError("reward, beta: give both, or neither for the escort.")
        if beta is not None:
            check_beta(beta)
        self.regularizer, self.reward, self.beta, self.options = regularizer, reward, beta, options
        self._looked_at: set[str] = set()

    def look_at(self, name: str, task: Any) -> None:
        """ArgumentError where a task needs more than the optimum has."""
        kind, metrics = task.get_config("output_type"), set(task.aggregation())
        if kind in ("loglikelihood", "loglikelihood_rolling"):
            raise ArgumentError(
                f"{name}: {kind} needs probabilities, and the optimum's are known up to a factor 1/Z a prompt. Use tasks of "
                "multiple_choice (acc) or generate_until."
            )
        if kind == "multiple_choice" and metrics != {"acc"}:
            raise ArgumentError(
                f"{name}: {', '.join(sorted(metrics - {'acc'}))} change with the factor 1/Z that all choices of a prompt have "
                "in common and that is not known; acc does not. Give the task metric_list: [{metric: acc}]."
            )
        self._looked_at.add(name)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log P_0(y) + r(y)/β, False): choices of one context compare; nothing else does."""
        if unseen := {each.task_name for each in requests} - self._looked_at:
            raise ArgumentError(
                f"{sorted(map(str, unseen))}: the optimum must see a task's metrics first, for acc alone can be told. Call "
                "multiref.integrations.lm_eval.evaluate(lm, tasks, …) instead of simple_evaluate."
            )
        if not requests:
            return []
        contexts: dict[tuple[Any, Any], str] = {}
        for each in requests:
            if contexts.setdefault((each.task_name, each.doc_id), each.args[0]) != each.args[0]:
                raise ArgumentError(
                    f"{each.task_name}: the choices of row {each.doc_id} have different contexts, and each context has its own "
                    "unknown factor 1/Z. Use a task whose choices follow one context."
                )
        value = self._value([Item(context, (rest,)) for context, rest in (each.args for each in requests)])
        best: dict[tuple[Any, Any], float] = {}
        for each, one in zip(requests, value):
            best[each.task_name, each.doc_id] = max(one, best.get((each.task_name, each.doc_id), -math.inf))
        if bare := next((key for key, one in best.items() if one == -math.inf), None):
            raise EmptyPoolError(f"{bare[0]}: no choice of row {bare[1]} has mass: a reference or the reward forbids each.")
        return [(each, False) for each in value]

    def _value(self, items: Sequence[Item]) -> list[float]:
        """log P_0(y) + r(y)/β of each item's completion."""
        rows = []
        for name in self.refs.names:
            scored = self.refs.open(name).score(items)
            if cut := int(scored.truncated.sum()):
                raise ArgumentError(
                    f"{cut} of {len(items)} answers do not fit the context of {name!r} with their prompt. "
                    "Take fewer examples in the prompt (num_fewshot), or a reference with a longer context."
                )
            rows.append(torch.as_tensor(scored.logps).double())
        asked = Rewarding(self.reward, self.options.get("reward_max"))
        rewards = torch.cat([asked(item.prompt, item.completions) for item in items])
        found: list[float] = (self.regularizer.pool(torch.stack(rows)) + rewards / (self.beta or 1.0)).tolist()
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused: π* gives a text log P_0 + r/β − log Z, and Z of its prompt is not known."""
        raise ArgumentError(
            "Perplexity needs the optimum's normaliser Z of each text's prompt, which is not known. "
            "Take a task of choices (acc) or generate_until."
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """One draw each, by weight, cut before the first stop string. A temperature other than 1, and cuts, are refused."""
        texts = []
        for context, given in (each.args for each in requests):
            generation, stops = self._asked_for(given, self.options.get("max_new_tokens", _NEW))
            if generation.temperature not in (0, 1) or generation.top_k or generation.top_p < 1:
                raise ArgumentError(
                    "generation_kwargs: the optimum is drawn as it is, at temperature 1 and uncut. "
                    "Leave temperature, top_k and top_p out of the task."
                )
            self.asked += 1
            options = {**self.options, "max_new_tokens": generation.max_new_tokens, "seed": self.seed + self.asked}
            draws = sample([context], self.refs, self.regularizer, self.reward, self.beta, **options)
            (text,) = draws.pick(self.seed + self.asked)
            texts.append(text[: min((at for at in map(text.find, stops) if at >= 0), default=None)])
        return texts


def evaluate(lm: TemplateLM, tasks: Sequence[Any], *, task_manager: TaskManager | None = None, **options: Any) -> Any:
    """`lm_eval.simple_evaluate`, after an `OptimumLM` has seen whether each task asks for no more than it has."""
    manager = task_manager or TaskManager()
    if isinstance(lm, OptimumLM):
        for name, task in manager.load(list(tasks))["tasks"].items():
            lm.look_at(name, task)
    return simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, **options)
