"""Text of users, as a page, a card or a terminal may show it."""

import re

_PATH = re.compile(
    r"""(?:(?<=[\s"'(\[{=,;:])|\A)(?:file://)?(?:/|[A-Za-z]:[\\/]|\\\\)(?:[^\s/\\"'<>|()\[\]{},;]+[\\/])*([^\s/\\"'<>|()\[\]{},;]+)/?"""
)
_WHOLE = re.compile(r"(?:file://)?(?:/|[A-Za-z]:[\\/]|\\\\)(?:[^\n]*[\\/])?([^\n\\/]+)[\\/]?")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object) -> str:
    """What a terminal or a browser would act on, or cannot show, is escaped: control characters, marks that turn the order of
    letters, halves of characters. Tabs and newlines stay."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def excerpt(text: str, width: int = 60) -> str:
    """The text in quotation marks, so many characters of it; "…" stands for the rest."""
    return repr(text if len(text) <= width else text[: width - 1] + "…")


def public(text: object) -> str:
    """The same for a page or a card, which others read: of a path of this machine only the last part, "…/pairs.jsonl"."""
    seen = visible(text)
    if whole := _WHOLE.fullmatch(seen):
        return f"…/{whole[1]}"
    return _PATH.sub(r"…/\1", seen)
