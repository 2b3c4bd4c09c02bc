from .drawing import sample as sample
from .draws import Draws as Draws
from .processor import PoolLogitsProcessor as PoolLogitsProcessor
from .request import METHODS as METHODS
from .request import Budget as Budget
from .streaming import stream_tokens as stream_tokens
