"""Typesets the pages' formulas as MathML, which every current browser reads: no script, no font, no network.

The source is the notation of our docstrings, so that a terminal shows the same formula: `Σ_k w_k log π_k`, `e^{r/β}`, `π*`.
Limits below a sum, upright fractions and roots come from the notation; words within a formula are set as words.
"""

import re
import unicodedata
from dataclasses import dataclass
from html import escape

UNDER = {"max", "min", "sup", "inf", "argmax", "argmin", "minimise", "maximise", "mean"}  # what is below: π in max_π
NAMES = UNDER | {"log", "exp", "clip", "softmax", "KL", "JS", "DPO", "ECE", "Var", "Cov", "Ĉov", "tr", "solve", "value", "gap"}
SHORT_WORDS = {"is", "of", "as", "at", "in", "to", "by", "or", "if", "on", "up", "so", "an", "no", "it"}
LARGE = {"Σ": "∑", "Π": "∏", "∏": "∏", "∫": "∫"}
PLAIN = {"-": "−", "~": "∼", "*": "∗"}
HALVES = {"½": "1/2", "¼": "1/4"}
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀᶜ", "0123456789+−Tc", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
PAIRS = {"(": ")]", "[": ")]", "{": "}", "⌊": "⌋"}  # [0, ½) is closed too
MARKS = {"\u0302": "^", "\u0303": "~", "\u0304": "¯"}
ONE_FRACTION = r"<mrow><mo>\(</mo><mfrac>((?!</mfrac>).)*</mfrac><mo>\)</mo></mrow>"
RELATIONS = "=∝≤≥<>→←~∼≻"
FLAT = ' stretchy="false"'
TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<raised>[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀᶜ]+)|(?P<lowered>[₀-₉]+)|(?P<number>\d+(?:[.,]\d+)*)"
    r"|(?P<word>[A-Za-z]\u0302?[A-Za-zÀ-ÿ-]*[a-zA-Z](?:'s\b)?)|(?P<letter>[^\W\d_][\u0302-\u0304]?)|(?P<sign>.)"
)


@dataclass(frozen=True)
class Token:
    """A piece of a formula: what kind it is, and how it is written."""

    kind: str
    text: str


def tokens(source: str) -> list[Token]:
    """The pieces, accents as combining marks; a word that is none is its letters."""
    parts = (unicodedata.normalize("NFD", c) for c in source)
    decomposed = "".join(part if part[1:] in MARKS else c for part, c in zip(parts, source, strict=True))
    found = []
    for match in TOKEN.finditer(decomposed):
        kind, text = str(match.lastgroup), match.group()
        if kind == "word" and len(text) == 2 and text not in NAMES | SHORT_WORDS:
            found += [Token("letter", letter) for letter in text]
        else:
            found.append(Token(kind, unicodedata.normalize("NFC", text) if kind == "word" else text))
    return found


class Reader:
    """Reads a formula from left to right into MathML; `display` sets fractions upright."""

    def __init__(self, source: str, *, display: bool) -> None:
        self.left, self.display, self.spaced, self.gap = tokens(source), display, True, False

    def peek(self) -> Token:
        return self.left[0] if self.left else Token("end", "")

    def row(self, closing: str = "") -> list[str]:
        """Everything up to the bracket that closes."""
        found: list[str] = []
        self.spaced, self.gap = True, False  # whether a space or nothing, and whether a space, stands before
        while self.left and not (closing and self.peek().text in closing):
            if (token := self.peek()).kind == "space":
                self.left.pop(0)
                self.spaced = self.gap = True
                if len(token.text) > 2 and self.peek().text not in RELATIONS:
                    found.append('<mspace width="2em"/>')
                continue
            free = self.spaced
            thing = self.fraction(free=free)
            found.append(bare(thing) if free and re.fullmatch(ONE_FRACTION, thing) else thing)
            self.spaced = self.gap = False
        return found

    def fraction(self, *, free: bool) -> str:
        """a/b upright where both sides are one thing each; else as written."""
        first, before = self.peek(), len(self.left)
        above = self.scripted()
        whole = first.kind == "number" or (free and first.text == "(" and above.startswith("<mrow>"))
        if not (self.display and whole and self.slash()):
            return above
        kept = list(self.left)
        while self.peek().kind == "space" or self.peek().text == "/":
            self.left.pop(0)
        second = self.peek()
        if second.text == "(" or second.kind in ("letter", "number"):
            below = self.scripted()
            if self.peek().kind not in ("letter", "word", "number") and self.peek().text not in ("(", "["):
                return f"<mfrac>{bare(above)}{bare(below)}</mfrac>"
        assert len(kept) < before
        self.left = kept
        return above

    def slash(self) -> bool:
        return next((token.text == "/" for token in self.left if token.kind != "space"), False)

    def scripted(self) -> str:
        """One thing with what hangs on it: π*_k, e^{r/β}, f'(t), A⁻¹."""
        token = self.peek()
        base, low, high = self.atom(), "", ""
        can_star = token.kind == "letter" or token.text == "("
        while True:
            following = self.peek()
            if following.text == "_" or following.kind == "lowered":
                low += self.script()
            elif following.text in ("^", "'") or following.kind == "raised" or (following.text == "*" and can_star):
                high += self.script()
            else:
                break
        if token.text in LARGE or token.text in UNDER:
            return {
                (False, False): base,
                (True, False): f"<munder>{base}<mrow>{low}</mrow></munder>",
                (False, True): f"<mover>{base}<mrow>{high}</mrow></mover>",
                (True, True): f"<munderover>{base}<mrow>{low}</mrow><mrow>{high}</mrow></munderover>",
            }[bool(low), bool(high)]
        if low and high:
            return f"<msubsup>{base}<mrow>{low}</mrow><mrow>{high}</mrow></msubsup>"
        if low or high:
            kind = "msub" if low else "msup"
            return f"<{kind}>{base}<mrow>{low or high}</mrow></{kind}>"
        return base

    def script(self) -> str:
        """What follows _ or ^, a star, a prime, or digits that are written small."""
        token = self.left.pop(0)
        if token.kind in ("raised", "lowered"):
            return "".join(Reader("".join((RAISED | LOWERED)[c] for c in token.text), display=False).row())
        if token.text == "'":
            return "<mo>′</mo>"
        if token.text == "*":
            return "<mo>∗</mo>"
        following = self.peek()
        if following.text == "{" or (following.text == "(" and token.text == "^"):
            self.left.pop(0)
            row = self.inside(following.text, script=True)
            self.left.pop(0)
            return row
        found = [self.atom() if following.text in "<+∞" else ""]
        while self.peek().kind in ("letter", "word", "number", "lowered") and following.text != "+":
            found.append(self.atom())
        return "".join(found)

    def inside(self, bracket: str, *, script: bool = False) -> str:
        """The row within a bracket that was read, up to the one that closes."""
        was, self.display = self.display, self.display and not script
        row = "".join(self.row(PAIRS[bracket]))
        self.display = was
        if not self.left:
            raise ValueError(f"{bracket} is not closed after {row}")
        return row

    def atom(self) -> str:
        """One symbol, name, number or bracket."""
        token = self.left.pop(0)
        text = escape(token.text)
        if token.kind == "number":
            return f"<mn>{text}</mn>"
        if token.kind == "word":
            return self.name(token.text)
        if token.text in LARGE:
            return f'<mo movablelimits="true">{LARGE[token.text]}</mo>'
        if token.text in HALVES:
            return "<mfrac><mn>{}</mn><mn>{}</mn></mfrac>".format(*HALVES[token.text].split("/"))
        if token.kind == "letter":
            if text == "a" and [token.kind for token in self.left[:2]] == ["space", "word"]:
                return self.name("a")
            letter = '<mi mathvariant="normal">E</mi>' if text == "E" else f"<mi>{text[0]}</mi>"
            mark = f"<mo{FLAT}>{MARKS[text[1]]}</mo>" if len(text) == 2 else ""
            return f'<mover accent="true">{letter}{mark}</mover>' if mark else letter
        if token.text == "√":
            return f"<msqrt>{bare(self.scripted())}</msqrt>"
        if token.text in PAIRS:
            inside, closing = self.inside(token.text), self.left.pop(0).text
            flat = "" if re.search("<mfrac>|<munder", inside) else FLAT  # without a font for it a browser stretches too far
            return f"<mrow><mo{flat}>{text}</mo>{inside}<mo{flat}>{closing}</mo></mrow>"
        upright = FLAT if token.text in "|‖" else ""
        return f"<mo{upright}>{escape(PLAIN.get(token.text, token.text))}</mo>"

    def name(self, text: str) -> str:
        """log, max, KL; or a word of the sentence around, with its spaces."""
        following = self.peek()
        if text in NAMES:
            gap = "" if following.text in ("(", "[", "_", "^") or following.kind != "space" else '<mspace width="0.17em"/>'
            limits = ' movablelimits="true" form="prefix"' if text in UNDER else ""
            return f"<mo{limits}>{text}</mo>" if limits else f"<mi>{text}</mi>{gap}"
        after = "\u00a0" if following.kind == "space" else ""
        before = "\u00a0" if self.gap else ""
        return f"<mtext>{before}{escape(text)}{after}</mtext>"


def bare(found: str) -> str:
    """Without the round brackets around the whole of it."""
    inner = re.fullmatch(rf"<mrow><mo(?:{FLAT})?>\((</mo>.*<mo)(?:{FLAT})?>\)</mo></mrow>", found)
    return f"<mrow>{inner[1][len('</mo>') : -len('<mo')]}</mrow>" if inner else found


def inline(source: str) -> str:
    """A formula within a line: one `<math>` for each side of a relation, for a line breaks only between two of them."""
    pieces, depth = [""], 0
    for word in re.split(r"(\s+)", " ".join(source.split())):
        new = depth == 0 and (word in RELATIONS or (word in "+−·" and len(pieces[-1]) > 20)) and word and pieces[-1]
        pieces += [""] if new else []
        pieces[-1] += word
        depth += sum(word.count(c) for c in "([{") - sum(word.count(c) for c in ")]}")
    return "<wbr>".join(f"<math>{''.join(Reader(piece, display=False).row())}</math>" for piece in pieces)


def block(lines: list[str]) -> str:
    """Formulas of their own, one a line; where every line has as many columns (three spaces apart), they are aligned."""
    cells = [re.split(r" {3,}", line.strip()) for line in lines]
    if len({len(row) for row in cells}) > 1 or len(lines) == 1:
        cells = [[line.strip()] for line in lines]
    rows = "".join(
        "<mtr>" + "".join(f"<mtd>{''.join(Reader(c, display=True).row())}</mtd>" for c in row) + "</mtr>" for row in cells
    )
    return f'<div class="formula"><math display="block"><mtable displaystyle="true">{rows}</mtable></math></div>'


def is_formula(lines: list[str]) -> bool:
    """Whether an indented block is one: each line relates symbols that no keyboard has, no word of code, few words of prose."""
    text = " ".join(lines)
    if re.search(r"""["`#$\\@{]{1}["%\w]*["`]|>>>|[a-z]{2,}_[a-z]{3,}|\w\.\w+\(|…[,)]|:\s*$|^\s*[-$]""", text):
        return False
    found = [token for token in tokens(text) if token.kind != "space"]
    prose = [token for token in found if token.kind == "word" and token.text not in NAMES and len(token.text) > 2]
    greek = any(re.search(r"[α-ωΑ-Ω∏∈√ℓ]", line) for line in lines)
    related = all(re.search(rf"[{RELATIONS}Σ∏]", line) or line.startswith("    ") for line in lines)
    return greek and related and len(prose) * 4 <= len(found)
