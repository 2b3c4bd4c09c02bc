"""The subclass of TRL's `DPOTrainer` that takes reference log-probabilities from the dataset, and trains on the very token ids
that the references scored. Tested with TRL 1.16.0."""

import json
import warnings
from collections.abc import Sequence
from typing import Any

from trl.trainer.dpo_trainer import DPOTrainer

from multiref.data import Pair
from multiref.errors import ArgumentError, MultirefWarning
from multiref.integrations.trl_columns import ALPHA, COLUMNS, CONVENTION, DIGESTS, GIVEN, pairs_of
from multiref.models import Encoded, Tokenisation, encode_many
from multiref.models.encoding import check_one_prompt

_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_OF_MARGINS = {"sigmoid", "hinge", "exo_pair", "robust", "aot", "discopop", "sft"}  # losses in which a normaliser cancels


class ReferenceColumnsDPOTrainer(DPOTrainer):
    """`DPOTrainer` on a dataset that `with_reference_columns` filled. Set `precompute_ref_log_probs=True`;
    no reference model is loaded.

    The rows are encoded as the references scored them (`multiref.models.encode`), in place of TRL's own tokenisation. A
    reference with the policy's tokenizer and template must have scored exactly these ids. ArgumentError names the row where it
    did not, and a row that `DPOConfig.max_length` would cut; and, of several references, a loss in which the pool's normaliser
    does not cancel, and a divergence that is not the pool's.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        config = options.get("args") or (args[2] if len(args) > 2 else None)
        if config is None or not config.precompute_ref_log_probs:
            raise ArgumentError(
                "precompute_ref_log_probs: expected True, found False; TRL would ignore the columns and use its own reference. "
                "Pass args=DPOConfig(precompute_ref_log_probs=True, …)."
            )
        super().__init__(*args, **options)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """As TRL evaluates; new data after training, too, for which it would ask for a reference model: the columns stand."""
        model: Any = self.model
        kept, self.ref_model = self.ref_model, self.ref_model or model
        try:
            return dict(super().evaluate(*args, **options))
        finally:
            self.ref_model = kept

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        if missing := [column for column in (*COLUMNS, *DIGESTS, CONVENTION, ALPHA) if column not in dataset.column_names]:
            raise ArgumentError(f"The {name} dataset has no column {missing[0]!r}; fill it with with_reference_columns first.")
        _check_objective(self.args, dataset[0][ALPHA], len(dataset[0][DIGESTS[0]]))
        pairs = pairs_of(dataset, f"{name} row")
        tokenisation = Tokenisation(**json.loads(dataset[0][CONVENTION]))
        encoded = _as_scored(pairs, list(zip(*(dataset[column] for column in DIGESTS))), self._tokenizer, tokenisation)
        limit: int | None = getattr(self.args, "max_length", None)
        for pair, item in zip(pairs, encoded):
            if limit is not None and len(item.prompt_ids) + max(map(len, item.completions)) > limit:
                raise ArgumentError(
                    f"max_length: {pair.origin} has more than {limit} tokens, which TRL would cut while the references scored "
                    "all. Set DPOConfig(max_length=None), or leave such rows out."
                )
        ids = [[item.prompt_ids for item in encoded], *([item.completions[side] for item in encoded] for side in (0, 1))]
        dataset = dataset.remove_columns(
            [name for name in (*_IDS, *DIGESTS, CONVENTION, ALPHA, GIVEN) if name in dataset.column_names]
        )
        for column, values in zip(_IDS, ids):
            dataset = dataset.add_column(column, [list(each) for each in values])
        return dataset


def _check_objective(config: Any, alpha: float, references: int) -> None:
    """ArgumentError, naming the setting under which the columns are not what the loss takes them for."""
    if config.ld_alpha is not None:
        raise ArgumentError(
            f"ld_alpha: found {config.ld_alpha}, expected None: it weighs the policy's later tokens, and the columns have all "
            "tokens of the references alike. Remove it."
        )
    if references < 2:
        return  # the pool of one is that reference
    losses = [config.loss_type] if isinstance(config.loss_type, str) else config.loss_type
    if odd := [name for name in losses if name not in _OF_MARGINS]:
        raise ArgumentError(
            f"loss_type: found {odd[0]!r}, expected one of {', '.join(sorted(_OF_MARGINS))}: the pool of several references is "
            "not normalised, which cancels between the two sides of a pair only where whole log-ratios are subtracted."
        )
    kind = config.f_divergence_type
    kind = str(getattr(kind, "value", kind))
    found = {"reverse_kl": 1.0, "forward_kl": 0.0, "alpha_divergence": config.f_alpha_divergence_coef}.get(kind)
    if found != alpha:
        raise ArgumentError(
            f"f_divergence_type: found {kind!r}{f' of {found:g}' if kind == 'alpha_divergence' else ''}, and the columns are "
            f"the pool of the α-divergence with α = {alpha:g}; expected "
            + {1.0: "'reverse_kl'", 0.0: "'forward_kl'"}.get(
                alpha, f"'alpha_divergence' with f_alpha_divergence_coef={alpha:g}"
            )
            + "."
        )


def _as_scored(pairs: Sequence[Pair], digests: Sequence[Any], tokenizer: Any, tokenisation: Tokenisation) -> list[Encoded]:
    """The pairs as token ids, which every reference that shares the policy's tokens must have scored.

    digests: P rows of (chosen, rejected), each K numbers; 0 where a reference's is not known.
    """
    texts, origins = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs], [pair.origin for pair in pairs]
    encoded = encode_many(tokenizer, texts, tokenisation, origins=origins)
    for item, origin in zip(encoded, origins):
        check_one_prompt(item, origin)
    both = [([item.digest(side) for side in (0, 1)], row) for item, row in zip(encoded, digests)]
    agree = [[ours == [int(theirs[k]) for theirs in row] for ours, row in both] for k in range(len(digests[0][0]))]
    for k, rows in enumerate(agree):
        if any(rows) and not all(rows):
            raise ArgumentError(
                f"{origins[rows.index(False)]}: reference {k + 1} of the columns scored the policy's tokens in other rows, and "
                "other tokens in this one. Score the rows with the policy's tokenizer as it is, and one tokenisation."
            )
    if not any(map(any, agree)) and any(any(side) for row in digests for side in row):
        warnings.warn(
            "No reference scored the policy's tokens in any row, so they cannot be compared: right where every reference has a "
            "tokenizer or template of its own. Else score with `start` and the template's arguments as they are here.",
            MultirefWarning,
            stacklevel=2,
        )
    return encoded
