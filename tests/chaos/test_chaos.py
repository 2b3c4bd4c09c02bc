"""`make chaos` in small: each verb killed, run again, and compared bit for bit with a run that nobody disturbed."""

import sys

import pytest

from tests import forked
from tests.chaos.__main__ import main
from tests.chaos.jobs import JOBS

OFTEN = ("score",)  # the others take longer than `make test` has


@pytest.mark.filterwarnings("ignore:Every completion of")  # a few tokens of a model that knows nothing
@pytest.mark.parametrize("verb", [pytest.param(verb, marks=[] if verb in OFTEN else pytest.mark.slow) for verb in JOBS])
def test_a_killed_verb_ends_as_one_that_nobody_disturbed(verb, tmp_path):
    how = ["--kills", "1", "--row", "0"] if verb in OFTEN else ["--kills", "4", "--row", "2"]
    with forked.ended(forked.start(kill, ["--verb", verb, *how], tmp_path / "said", alone=False)) as process:
        process.join()
    assert process.exitcode == 0, (tmp_path / "said").read_text()


def kill(given, said):
    with said.open("w") as sys.stdout:
        sys.exit(main(given))
