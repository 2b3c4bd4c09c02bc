from .authors import WorldSettings as WorldSettings
from .preferences import PairLaw as PairLaw
from .preferences import draw_pairs as draw_pairs
from .settings import DemoSettings as DemoSettings
from .world import World as World
from .world import make as make
from .yardstick import Answers as Answers
from .yardstick import Yardstick as Yardstick
