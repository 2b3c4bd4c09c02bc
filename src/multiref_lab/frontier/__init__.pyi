from .findings import Findings as Findings
from .page import write as write
from .settings import FrontierSettings as FrontierSettings
from .settings import Generated as Generated
from .settings import Offline as Offline
from .settings import Online as Online
from .sweep import Training as Training
from .sweep import sweep as sweep
