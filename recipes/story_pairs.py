"""Preference pairs of real stories, ranked by a lexicon: of two stories cut after a shared opening,
the one whose words are kinder is chosen.

    python recipes/story_pairs.py --stories stories.jsonl --lexicon vader_lexicon.txt --out story_pairs.jsonl

Stories: JSON Lines with a key `text`. Lexicon: word, tab, valence. The prompt is the opening that both stories share (their
first four words or more, such as "Once upon a time"); a completion is what follows, up to `--words` words,
cut at the end of a sentence. The reward is the mean valence per word. Each story is used once. No randomness but the seed.
Leaves out pairs whose rewards differ by less than 0.02.
"""

import argparse
import json
import random
import re
from pathlib import Path


def lexicon(path: Path) -> dict[str, float]:
    lines = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return {parts[0]: float(parts[1]) for parts in lines if len(parts) > 1}


def reward(text: str, valence: dict[str, float]) -> float:
    """Mean valence per word; words that the lexicon lacks count as neutral."""
    words = re.findall(r"[a-z']+", text.lower())
    return sum(valence.get(word, 0.0) for word in words) / max(len(words), 1)


def shortened(text: str, words: int) -> str:
    """The longest run of whole sentences within so many words (at least one sentence)."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?\"])\s+", " ".join(text.split())):
        if kept and len(kept.split()) + len(sentence.split()) > words:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def pairs(texts: list[str], valence: dict[str, float], words: int, seed: int) -> list[dict[str, str]]:
    groups: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        groups.setdefault(" ".join(text.split()[:4]), []).append(shortened(text, words))
    rows, rng = [], random.Random(seed)
    for opening, stories in groups.items():
        rng.shuffle(stories)
        for a, b in zip(stories[::2], stories[1::2]):
            better, worse = sorted((a[len(opening) :], b[len(opening) :]), key=lambda text: -reward(text, valence))
            if reward(better, valence) - reward(worse, valence) >= 0.02 and worse.strip():
                rows.append({"prompt": opening, "chosen": better, "rejected": worse})
    rng.shuffle(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=Path, required=True)
    parser.add_argument("--lexicon", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--words", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = [json.loads(line)["text"] for line in args.stories.read_text(encoding="utf-8").splitlines()]
    rows = pairs(texts, lexicon(args.lexicon), args.words, args.seed)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} pairs of {len(texts)} stories")


if __name__ == "__main__":
    main()
