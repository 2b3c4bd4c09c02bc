from .drawing import sample as sample
from .draws import Draws as Draws
from .request import METHODS as METHODS
from .request import Budget as Budget
