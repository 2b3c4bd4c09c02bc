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
        if "prompt" in row:
            return as_prompt({**row, "prompt": messages(row["prompt"], where)}, origin=where)
        if isinstance(text := row.get("text"), str):
            return text
        if {"chosen", "rejected"} <= row.keys():
            sides = {side: messages(row[side], where) for side in ("chosen", "rejected")}
            return as_pair({**row, **sides}, origin=where).prompt
        talk = prompt_of({**row, "conversations": row.get("conversations", row.get("messages"))}, where)
        while isinstance(talk, list) and talk and isinstance(talk[-1], Mapping) and talk[-1].get("role") == "assistant":
            talk = talk[:-1]  # what was answered is no part of the question
        if talk:
            return as_prompt({"prompt": talk, **{key: row[key] for key in ("system", "tools") if key in row}}, origin=where)
    raise DataError(f"{where}: expected a JSON object with `prompt` or `text`.")
