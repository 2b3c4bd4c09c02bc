"""A server that speaks OpenAI's completion protocol for the per-token pool of the references, or for draws of the optimum.

`make_app(served)` is the application (ASGI), `serve(served, …)` runs it. Needs the extra `serve` (starlette, uvicorn).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
