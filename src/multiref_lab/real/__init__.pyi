from .settings import RealSettings as RealSettings
