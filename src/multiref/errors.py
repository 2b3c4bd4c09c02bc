"""The exception tree. Every error that a user can cause is one of these, says what was found,
what was expected and what to do."""

__all__ = [
    "ArgumentError",
    "ConfigError",
    "DataError",
    "EmptyPoolError",
    "ModelError",
    "MultirefError",
    "MultirefNotice",
    "MultirefWarning",
    "OutputError",
    "ReferenceUnavailable",
    "StoreError",
    "VocabularyMismatch",
    "WeightsError",
]


class MultirefError(Exception):
    """Root of every error that `multiref` raises on purpose. On the command line: one message, exit code 2."""


class ArgumentError(MultirefError, ValueError):
    """An argument has a value that cannot work: weights off the simplex, β ≤ 0, NaN, shapes that do not match."""


class WeightsError(ArgumentError):
    """Weights that are negative, do not sum to one, are NaN, or do not match the number of references."""


class EmptyPoolError(ArgumentError):
    """The pooled reference has no mass at all: every completion is vetoed by some reference."""


class DataError(MultirefError, ValueError):
    """A data file or row that cannot be used. The message names the file and the row."""


class ConfigError(MultirefError, ValueError):
    """A configuration that cannot be used: an unknown key, a missing one, a value of the wrong kind."""


class ModelError(MultirefError, RuntimeError):
    """A model folder, hub id, adapter or tokenizer that cannot be loaded or used."""


class VocabularyMismatch(ModelError):
    """Token-level scores were asked of models whose vocabularies are not the same mapping."""


class ReferenceUnavailable(ModelError):
    """A remote reference did not answer, or answered something that is no score."""


class StoreError(MultirefError, RuntimeError):
    """A store of scores that is damaged, unwritable, or belongs to something else."""


class OutputError(MultirefError, OSError):
    """An output folder or file that cannot be written."""


class MultirefWarning(UserWarning):
    """Every warning that `multiref` gives on purpose: the result stands, but something about it should be known."""


class MultirefNotice(UserWarning):
    """What is said once and asks for nothing: columns of a file that are not read."""
