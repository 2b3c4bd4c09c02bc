"""Settings without a file: validated and carried out as those of a file are."""

from multiref.runs.document import Document
from multiref.runs.execute import execute
from multiref.runs.tasks import Run


def settings(config, **changes):
    return Document({**config, **changes}, "run.yaml").validate(Run)


def do(config, say=lambda text: None):
    return execute(settings(config), say=say)
