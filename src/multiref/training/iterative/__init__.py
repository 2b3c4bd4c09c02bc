"""Online alignment with labels as the budget: the bilevel trainer and its iterative peers, on whatever is a `Task`;
`text_task` makes one of Hugging Face models.

`train(task, method, plan)` is the one loop; a method says which pairs to have labelled and how to learn from them;
a task says what everything is.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
