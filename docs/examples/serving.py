"""Two references in folders, served in OpenAI's protocol."""

import multiref as mr
from multiref import serving

refs = mr.References({"a": "models/a", "b": "models/b"})

# %% TokenPool, Asked, Served
pool = serving.TokenPool(refs, mr.ReverseKL([0.3, 0.7]))
asked = serving.Asked(("is it 3?",), new_tokens=4, seed=0)

# %% Optimum
optimum = serving.Optimum(
    refs, mr.ReverseKL([0.3, 0.7]), lambda prompts, completions: [float(len(c)) for c in completions], 0.5
)

# %% make_app
app = serving.make_app(pool, name="pool", key="secret")  # an ASGI application: uvicorn, or any other server, runs it

# %% serve
if input("Serve? ") == "yes":
    serving.serve(pool, port=8000)  # until it is interrupted; /v1/models, /v1/completions, /v1/chat/completions, /health
