"""Settings without a file: validated and carried out as those of a file are."""

from multiref.runs.document import Document
from multiref.runs.execute import execute
from multiref.runs.tasks import Run
from tests.conftest import make_llama, make_tokenizer

WORDS = [
    "the cat", "a dog", "two plus three", "the log", "a little dog", "it is five", "Max", "the mat", "on a log", "yes", "no it",
    "a mat",
]  # fmt: skip


def settings(config, **changes):
    return Document({**config, **changes}, "run.yaml").validate(Run)


def do(config, say=lambda text: None):
    return execute(settings(config), say=say)


def make_two(tmp_path_factory, *, std, chat=False):
    """Two small models with one tokenizer, "policy" and "other" → their folders."""
    tokenizer, made = make_tokenizer(chat=chat), {}
    for seed, name in enumerate(("policy", "other")):
        folder = tmp_path_factory.mktemp(name)
        make_llama(len(tokenizer), seed=seed, std=std).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[name] = str(folder)
    return made
