"""The prompt of a row, whatever else stands in it."""

from collections.abc import Mapping

from multiref.data.formats import messages, prompt_of
from multiref.data.pairs import as_pair, as_prompt
from multiref.data.text import Text
from multiref.errors import DataError


def prompt_text(row: object, where: str) -> Text:
    """`prompt` or `text`; a question or instruction; messages before the last answer; what both sides of a pair begin with.
    DataError naming the row for one that has none of them."""
    if isinstance(row, Mapping):
        row = {key: value for key, value in row.items() if value not in (None, "")}
        asked = messages(row["prompt"], where) if "prompt" in row else row.get("text")
        if "prompt" not in row and not isinstance(asked, str):
            asked = prompt_of({**row, "conversations": row.get("conversations", row.get("messages"))}, where)
            while isinstance(asked, list) and asked and isinstance(asked[-1], Mapping) and asked[-1].get("role") == "assistant":
                asked = asked[:-1]  # what was answered is no part of the question
        if asked:
            return as_prompt({**row, "prompt": asked}, origin=where)
        if {"chosen", "rejected"} <= row.keys():
            sides = {side: messages(row[side], where) for side in ("chosen", "rejected")}
            return as_pair({**row, **sides}, origin=where).prompt
    raise DataError(f"{where}: expected a JSON object with `prompt` or `text`.")
