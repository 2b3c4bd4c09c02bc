from . import bounds as bounds
from . import data as data
from . import decoding as decoding
from . import divergences as divergences
from . import errors as errors
from . import evaluation as evaluation
from . import exact as exact
from . import integrations as integrations
from . import losses as losses
from . import models as models
from . import pools as pools
from . import references as references
from . import report as report
from . import training as training
from . import weighting as weighting
from .references import References as References
from .regularizers import AlphaDivergence as AlphaDivergence
from .regularizers import FDivergence as FDivergence
from .regularizers import ForwardKL as ForwardKL
from .regularizers import PooledKL as PooledKL
from .regularizers import Regularizer as Regularizer
from .regularizers import ReverseKL as ReverseKL
from .runs import run as run

__version__: str
