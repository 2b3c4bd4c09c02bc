from .app import make_app as make_app
from .asked import Asked as Asked
from .asked import BadRequest as BadRequest
from .running import serve as serve
from .served import Optimum as Optimum
from .served import Served as Served
from .served import TokenPool as TokenPool
