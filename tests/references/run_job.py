"""A job in a process of its own, to be ended by the test that starts it: `python -m tests.references.run_job STORE LOG SHARD_SIZE PAUSE PAIRS`."""

import sys
import warnings

from multiref.references import References
from tests.references.doubles import Companion, pairs


def main(store, log, shard_size, pause, count):
    warnings.simplefilter("ignore")
    references = {name: Companion(name, log=log, pause=float(pause)) for name in ("a", "b")}
    References(references).score(pairs(int(count)), store=store, shard_size=int(shard_size))


if __name__ == "__main__":
    main(*sys.argv[1:])
