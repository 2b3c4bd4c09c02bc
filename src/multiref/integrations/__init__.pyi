from . import lm_eval as lm_eval
from . import trl as trl
