"""A job in a process of its own, to be ended by the test that starts it: `python -m tests.references.run_job STORE LOG
SHARD_SIZE PAUSE PAIRS [MODEL]`."""

import sys
import warnings

import torch

from multiref.references import References
from tests.references.doubles import Companion, pairs


def main(store, log, shard_size, pause, count, model=None):
    """Two doubles (on two workers of Ray: "ray"); or, with a model folder, that model, whose scores depend on their batch as
    float32 does."""
    warnings.simplefilter("ignore")
    engine = "local"
    if model == "ray":
        from multiref.references.engines.ray import RayEngine

        model, engine = None, RayEngine(workers=2)
    if model is None:
        references = {name: Companion(name, log=log, pause=float(pause)) for name in ("a", "b")}
    else:
        torch.set_num_threads(1)
        references = {"model": model}
    References(references).score(pairs(int(count)), store=store, shard_size=int(shard_size), engine=engine)


if __name__ == "__main__":
    main(*sys.argv[1:])
