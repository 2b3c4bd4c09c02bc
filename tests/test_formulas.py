"""The pages' formulas, as the site sets them (docs/mathml.py)."""

import ast
import re
import sys
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from mathml import block, inline, is_formula  # noqa: E402

BLOCK = re.compile(r"(?:^|\n\n)((?:    [^\n]*\n?)+)(?=\n|$)")


def sources():
    """Every indented block of the pages and docstrings, and every `$ … $`, with where it stands."""
    for page in sorted(ROOT.glob("docs/*.md")):
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        yield from ((page.name, found) for found in BLOCK.findall(text))
        plain = re.sub(r"`[^`]*`|^    .*$", "", text, flags=re.MULTILINE)
        yield from ((page.name, found) for found in re.findall(r"\$([^$]+)\$", plain))
    for path in sorted(ROOT.glob("src/multiref/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield from ((f"{path.name}: {getattr(node, 'name', '')}", found) for found in BLOCK.findall(text))


def words(mathml):
    """What a reader sees, signs and spaces left out."""
    seen = "".join(ElementTree.fromstring(f"<p>{mathml.replace('<wbr>', '')}</p>").itertext())
    return re.sub(r"\W", "", unicodedata.normalize("NFD", seen))


def test_every_formula_of_pages_and_docstrings_keeps_its_letters():
    """All letters and digits that go in come out, and no others; halves and small digits are written out."""
    small = str.maketrans("₀₁₂₃₄₅₆₇₈₉⁰¹²³⁴⁵⁶⁷⁸⁹ᵀᶜ", "01234567890123456789Tc") | {ord("½"): "12", ord("¼"): "14"}
    typeset = 0
    for where, source in sources():
        lines = [line[4:] for line in source.splitlines() if line.strip()]
        if source.startswith("    ") and not is_formula(lines):
            continue
        typeset += 1
        found = words(block(lines) if source.startswith("    ") else inline(source))
        plain = re.sub(r"[\W_ΣΠ]", "", unicodedata.normalize("NFD", source.translate(small)))
        assert sorted(found) == sorted(plain), f"{where}: {source}"
    assert typeset > 200


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("π*_w", "<msubsup><mi>π</mi><mrow><mi>w</mi></mrow><mrow><mo>∗</mo></mrow></msubsup>"),
        ("e^{r/β}", "<msup><mi>e</mi><mrow><mi>r</mi><mo>/</mo><mi>β</mi></mrow></msup>"),
        ("σ_r²", "<msubsup><mi>σ</mi><mrow><mi>r</mi></mrow><mrow><mn>2</mn></mrow></msubsup>"),
        ("√(nF)", "<msqrt><mrow><mi>n</mi><mi>F</mi></mrow></msqrt>"),
        ("[0, ½)", "<mrow><mo>[</mo><mn>0</mn><mo>,</mo><mfrac><mn>1</mn><mn>2</mn></mfrac><mo>)</mo></mrow>"),
        ("r_max", "<msub><mi>r</mi><mrow><mo movablelimits=\"true\" form=\"prefix\">max</mo></mrow></msub>"),
        ("y_<t", "<msub><mi>y</mi><mrow><mo>&lt;</mo><mi>t</mi></mrow></msub>"),
    ],
    ids=["star-and-index", "power", "index-and-square", "root", "half-open", "word-below", "prefix"],
)  # fmt: skip
def test_the_notation(source, expected):
    assert inline(source) == f"<math>{expected}</math>"


def test_a_fraction_stands_upright_where_both_sides_are_one_thing():
    assert "<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mi>c</mi></mfrac>" in block(["x = (a + b)/c"])
    assert "<mfrac>" not in block(["f(x)/c"])  # a value of f
    assert "<mfrac>" not in block(["1/nK"])  # 1/(nK), not K/n
    assert "<mfrac>" not in inline("(a + b)/c")


def test_a_bracket_is_tall_only_around_what_is_tall():
    """A browser without a font for mathematics stretches it far beyond a subscript."""
    assert inline("(π_k)").count('<mo stretchy="false">') == 2
    assert "stretchy" not in inline("(½)") and "stretchy" not in block(["(Σ_k w_k)"])


@pytest.mark.parametrize("source", ["e^{r/β", "log(π"])
def test_a_bracket_that_is_not_closed_is_an_error(source):
    with pytest.raises(ValueError, match="not closed"):
        inline(source)


@pytest.mark.parametrize(
    "line",
    ["multiref train --set beta=0.2", 'scores = refs.score(pairs, store="scores/")', "pairs → scores → pool → policy → report"],
    ids=["shell", "python", "prose"],
)
def test_what_is_no_formula_stays_code(line):
    assert not is_formula([line])
