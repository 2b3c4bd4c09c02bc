"""Completions sampled by a server that speaks OpenAI's completion protocol as vLLM does,
with the log-probabilities they were sampled with."""

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from multiref._files import as_path
from multiref.errors import ArgumentError, ReferenceUnavailable
from multiref.models.architecture import check_rows
from multiref.models.draws import check_draws
from multiref.models.encoding import Encoded
from multiref.models.sampling import as_rollouts, encode_prompts, end_ids
from multiref.models.spec import Generation
from multiref.references.bounded_http import Refused
from multiref.references.completion_api import UNCUT, CompletionApi, Connection, check_logps, ids_of
from multiref.references.rollouts import Rollout
from multiref.training.checks import check_whole


class AdapterPush:
    """Gives a vLLM server the policy's LoRA adapter, through its endpoints load_lora_adapter and unload_lora_adapter.

    The server is started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True on the adapter's base model,
    and reads `folder`. Every push has a name of its own, so that nothing that was cached under older weights is used again.
    """

    def __init__(self, folder: str | Path, name: str = "policy") -> None:
        self.folder, self.name, self.served = as_path(folder), f"{name}-{uuid.uuid4().hex[:8]}", 0

    def __call__(self, model: Any, api: CompletionApi) -> str:
        if not hasattr(model, "peft_config"):
            raise ArgumentError(
                "AdapterPush: expected a policy with a LoRA adapter; a server takes no whole model this way. Give `push` a "
                "function that does."
            )
        before, name = f"{self.name}-{self.served}", f"{self.name}-{self.served + 1}"
        model.save_pretrained(self.folder / name)
        try:
            api.command("load_lora_adapter", lora_name=name, lora_path=str(self.folder / name))
            if self.served:
                api.command("unload_lora_adapter", lora_name=before)
                shutil.rmtree(self.folder / before, ignore_errors=True)
        except (Refused, ReferenceUnavailable) as error:  # 404 without the endpoint, 500 for an adapter that it cannot use
            raise ReferenceUnavailable(
                f"{str(error).rstrip('.')}. To take adapters the server needs --enable-lora, --max-lora-rank of at least the "
                f"adapter's rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and must see {self.folder}; vLLM takes neither "
                "DoRA nor modules_to_save."
            ) from None
        self.served += 1
        return name


class ServerSampler:
    r"""A sampler for `OnlineTrainer`: the server draws, the loop learns, and each completion carries log μ of the server's
    policy μ when it was drawn.

    What is on-policy: with `push` and every = 1 the server has the weights of each step, and μ is π but for the arithmetic of
    two programs. With every > 1, or without `push`, μ is an older policy.
    The loop multiplies each completion by π/μ (of whole completions under RLOO and REINFORCE: unbiased for every μ;
    of tokens under GRPO: approximate), logs its mean as `sampling_ratio` (1 but for noise) and takes the penalty of the policy
    as it is. Nothing bounds the variance of that ratio: push often.

    Args:
        endpoint: "http://host:8000/v1", or a `CompletionApi` with its own timeout, attempts and key.
            model: its name there; None: the first that it lists.
        group, max_new_tokens: as the method's and the arguments'.
        push: (policy, api) → the name to sample from, or None for the same: gives the server the policy's weights.
            `AdapterPush(folder)` for LoRA under vLLM.
            None: the server is never told, which is right for few steps at most.
        every: calls between pushes. concurrency: requests at a time.
        on_policy: at the first call, and after each push, the server has the policy's weights, which is checked (of pushes at
            the first, second, fourth, …): by the log-probabilities that it states, and by what it draws. A server that ignores
            a new adapter is found out once that has moved. False for one that samples from another policy on purpose.

    Asked of the server: prompts as token ids, `n`, every setting of sampling at its neutral value, `logprobs`,
    `return_token_ids` (vLLM 0.10.2) or `return_tokens_as_token_ids`, and the end token among the tokens.
    Errors: ReferenceUnavailable where it does not answer so; ModelError where its first completions are not the policy's.
    Sampling on one machine, pushing from one process.
    """

    def __init__(
        self,
        endpoint: str | CompletionApi,
        *,
        group: int,
        max_new_tokens: int,
        model: str | None = None,
        push: Callable[[Any, CompletionApi], str | None] | None = None,
        every: int = 1,
        concurrency: int = 8,
        on_policy: bool = True,
    ) -> None:
        self.api = CompletionApi(endpoint, Connection(timeout=600.0)) if isinstance(endpoint, str) else endpoint
        self.group, self.max_new_tokens, self.model = group, max_new_tokens, model
        self.push, self.every, self.concurrency, self.calls = push, every, concurrency, 0
        self.on_policy = on_policy
        check_whole(self, 1, "every", "concurrency")

    def __call__(self, model: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[Rollout]:
        pushes, between = divmod(self.calls, self.every)
        fresh = self.calls == 0 or (self.push is not None and between == 0 and (pushes + 1) & pushes == 0)
        if self.push is not None and between == 0:
            if PartialState().num_processes > 1:
                raise ArgumentError("ServerSampler: pushing weights is for one process; found several.")
            self.model = self.push(model, self.api) or self.model
        self.calls += 1
        self.model = self.model or str(self.api.models()[0]["id"])
        contexts, ends = encode_prompts(tokenizer, prompts), end_ids(model, tokenizer)
        seeds = torch.randint(2**31 - 1, (len(prompts),)).tolist()
        with ThreadPoolExecutor(self.concurrency) as pool:
            drawn = list(pool.map(lambda context, seed: self._drawn(context, seed, ends), contexts, seeds))
        rows = [row for group in drawn for row in group]
        asked = [
            Encoded(context, tuple(ids for ids, _ in group), (False,) * len(group)) for context, group in zip(contexts, drawn)
        ]
        check_rows(model, asked, prompts)
        if self.on_policy and fresh:
            who = f"The server {self.api.endpoint}"
            check_draws(model, contexts, rows, Generation(self.max_new_tokens), ends=ends, who=who, coarse=True)
        return as_rollouts(tokenizer, prompts, contexts, rows, ends)

    def _drawn(
        self, context: tuple[int, ...], seed: int, ends: tuple[int, ...]
    ) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        with self.api.hiding():
            try:
                choices = self.api.choices(
                    model=self.model,
                    prompt=list(context),
                    n=self.group,
                    max_tokens=self.max_new_tokens,
                    **UNCUT,
                    seed=seed,
                    logprobs=1,
                    return_token_ids=True,
                    return_tokens_as_token_ids=True,
                    stop_token_ids=list(ends),
                )
            except Refused as error:
                raise ReferenceUnavailable(
                    f"{error}. Expected a server that samples from token ids, as vLLM's /v1/completions does."
                ) from None
            if len(choices) != self.group:
                raise ReferenceUnavailable(f"The server gave {len(choices)} completions, expected {self.group}.")
            return [_ids_and_logps(choice, ends, self.max_new_tokens) for choice in choices]


def _ids_and_logps(choice: Mapping[str, Any], ends: Sequence[int], limit: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    found = choice.get("logprobs")
    block = found if isinstance(found, Mapping) else {}
    ids, logps = ids_of(choice), block.get("token_logprobs")
    listed = isinstance(ids, list) and all(type(each) is int and 0 <= each < 2**31 for each in ids)
    if not ids or not listed or not isinstance(logps, list) or len(ids) != len(logps):
        raise ReferenceUnavailable(
            "The server gave no token ids with a log-probability each (token_ids, logprobs.token_logprobs); expected those "
            "of vLLM's /v1/completions with return_token_ids."
        )
    if len(ids) > limit or any(token in ends for token in ids[:-1]):
        raise ReferenceUnavailable(
            f"A completion of the server has {len(ids)} tokens, {limit} were asked for; or it goes on behind an end token "
            "(ignore_eos, min_tokens). Expected one that ends where the policy ends it."
        )
    if len(ids) < limit and ids[-1] not in ends:
        if choice.get("finish_reason") == "length":
            raise ReferenceUnavailable(
                f"The server cut a completion at {len(ids)} tokens, max_new_tokens is {limit}: its context (max_model_len) "
                "has no room for more after this prompt, or the max_new_tokens of its model's generation_config.json is "
                "smaller (--generation-config vllm)."
            )
        raise ReferenceUnavailable(
            "A completion of the server stopped without an end token: the probability of stopping is missing. Expected the "
            "end token among its tokens."
        )
    known = [value for value in check_logps(logps, "token_logprobs") if value is not None]
    if len(known) < len(ids):
        raise ReferenceUnavailable("The server gave null for a token that it sampled; expected its log-probability.")
    return tuple(ids), tuple(known)
