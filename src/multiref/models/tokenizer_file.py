"""A tokenizer.json against the class that transformers reads it with.

Some classes take the vocabulary of the file and build rules of their own around it: how a text is normalised and split is then
another than the model was trained with (transformers 5.0 to 5.8 read all of Granite so), and so are all its token ids.
"""

import warnings
from pathlib import Path
from typing import Any

from multiref.errors import MultirefWarning

# digits in a row, capitals, accents, spaces in a row, other scripts, marks, line ends
_PROBE = "In 2023 the cat's  naïve NAMES,\n\n\tx_1=65*41; (日本) don't"


def check_rules(tokenizer: Any, file: Path, path: str) -> None:
    """One warning where the file itself gives other ids for a text than the tokenizer that was made of it."""
    from tokenizers import Tokenizer

    try:
        own = Tokenizer.from_file(str(file))
        own.no_truncation()
        written = own.encode(_PROBE, add_special_tokens=False).ids
        read = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    except Exception:  # a vocabulary without some of these letters, and no token for what is unknown
        return
    if read != written:
        warnings.warn(
            f"{path}: {type(tokenizer).__name__} gives other token ids than tokenizer.json itself ({read[:4]} and "
            f"{written[:4]} for {_PROBE[:11]!r}…): transformers builds this class's own rules around the file's vocabulary. "
            'Write "tokenizer_class": "TokenizersBackend" into tokenizer_config.json, if the model was trained with the file '
            "as it stands.",
            MultirefWarning,
            stacklevel=4,
        )
