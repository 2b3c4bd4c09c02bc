"""The race of online algorithms: `python -m multiref_lab.races --out race` runs it, prints its tables and draws its figures.

An interrupted race goes on where it was.
"""

import argparse
from pathlib import Path

from multiref_lab.cli.narrator import Narrator
from multiref_lab.races.figures import draw_all, summary
from multiref_lab.races.race import AUDIT, CONTESTANTS, Start, race
from multiref_lab.toys import Size


def main() -> None:
    """For each setting and method, the gap over labels as a share of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("race"), help="folder of records and figures")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--work", type=int, default=2_000, help="policy steps in all")
    parser.add_argument("--features", type=int, default=32, help="features that the reward is linear in")
    parser.add_argument("--width", type=int, default=64, help="of every transformer: policies, references, reward model")
    parser.add_argument("--beta", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seen", type=int, nargs="+", default=[None], help="features that the reward model has; default: all")
    parser.add_argument("--world", type=int, nargs="+", default=[3], help="rates were chosen on world 0")
    parser.add_argument("--audit", action="store_true", help="only the four upper objectives")
    parser.add_argument("--only", nargs="+", default=None, help="names of methods, as the race prints them")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    names = [e.name for e in (AUDIT if given.audit else CONTESTANTS) if given.only is None or e.name in given.only]
    starts = [
        Start(name, world, beta, size, given.seeds, given.labels, given.work)
        for world in given.world
        for size in [Size(width=given.width, dimension=given.features, seen=seen) for seen in given.seen]
        for beta in given.beta
        for name in names
    ]
    with Narrator() as told:
        records = race(given.out / "records", starts).run(told, workers=given.workers, what="races")
    for setting in dict.fromkeys(start.setting for start in starts):
        methods = {start.contestant: record.found for start, record in records.items() if start.setting == setting}
        print(setting, *summary(methods), *draw_all(methods, given.out / "figures" / setting), sep="\n")


if __name__ == "__main__":
    main()
