from .app import make_app as make_app
from .asked import Asked as Asked
from .asked import BadRequest as BadRequest
from .optimum import Optimum as Optimum
from .running import serve as serve
from .served import Served as Served
from .token_pool import TokenPool as TokenPool
