"""What it costs to draw from K = 2 models side by side, against one model's own `generate`: one run, ratios, 64 tokens.

    python benchmarks/decoding.py                                             random Llamas of 0.3 M parameters, vocabulary 512
    python benchmarks/decoding.py --models path/to/stories260K path/to/stories260K-gsm8k

Every row goes to the last token: nothing ends one. Sides take turns; a ratio is of medians. The marks (issue 19): lockstep at
most K × `generate`; smc at most 1.3 × the pool at equal rows; the processor inside `generate` at most 1.6 × `generate` alone;
smc at least 4 × as fast as without caches at 16 rows. What the processor cannot save is a bare pass of the other model, so it
is also held against `generate` and that together. The load of the machine stands beside each line.
"""

import argparse
import statistics
import time
import warnings

from record import machine, record

TOKENS = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs=2, help="folders; default: random models")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch
    import transformers

    from multiref.decoding import PoolLogitsProcessor
    from multiref.models import Generation, load, small_llama
    from multiref.models.architecture import cache_argument, cache_of, takes
    from multiref.models.descent import descend
    from multiref.models.particles import walk

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    if options.models:
        models = [load(path).model for path in options.models]
    else:
        shape = {"hidden": 64, "intermediate": 172, "layers": 5, "heads": 8, "context": 128}
        models = [small_llama(512, seed=seed, **shape) for seed in (0, 1)]
    for model in models:
        model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    context, weights, length = tuple(range(3, 11)), torch.tensor([0.5, 0.5]).double(), Generation(TOKENS)
    generator = torch.Generator().manual_seed(0)
    both = {"ends": (), "generation": length, "generator": generator}

    def generate(rows, *processors):
        ids = torch.tensor([context] * rows)
        more = {"logits_processor": list(processors)} if processors else {}
        models[0].generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=True, top_k=0, **more
        )

    def smc(rows):
        walk(models, context, weights, particles=(1, rows), **both)

    def uncached(rows):
        for model in models:
            model.config.use_cache = False
        try:
            smc(rows)
        finally:
            for model in models:
                model.config.use_cache = True

    @torch.inference_mode()
    def bare(rows):
        ids, cache = torch.tensor([context] * rows), None
        for _ in range(TOKENS):
            handed = cache_argument(takes(models[1]), cache)
            cache = cache_of(models[1](input_ids=ids, use_cache=True, logits_to_keep=1, **handed))
            ids = ids[:, -1:]

    sides = {
        "generate": generate,
        "pool": lambda rows: descend(models, context, weights, rows=rows, pooled=True, **both),
        "smc": smc,
        "processor": lambda rows: generate(rows, PoolLogitsProcessor(models, [0.5, 0.5])),
        "bare": bare,
        "smc without caches": uncached,
    }
    size = sum(parameter.numel() for parameter in models[0].parameters())
    print(f"{machine()}; {options.threads} thread; {size:,} parameters, {TOKENS} tokens", flush=True)
    for rows in options.rows:
        taken = {side: [] for side in sides}
        for repeat in range(options.repeats + 1):
            for side, run in sides.items():
                if side == "smc without caches" and rows != 16:
                    continue
                begin = time.process_time()
                run(rows)
                if repeat:  # the first warms up
                    taken[side].append(time.process_time() - begin)
        median = {side: statistics.median(times) for side, times in taken.items() if times}
        own = {"rows": rows, "parameters": size, **{f"{side}_s": round(value, 4) for side, value in median.items()}}
        one = "generate of one model"
        record(f"lockstep of 2, {rows} rows", median["pool"] / median["generate"], against=one, at_most=2, **own)
        record(f"processor, {rows} rows", median["processor"] / median["generate"], against=one, at_most=1.6)
        least, both_passes = median["generate"] + median["bare"], "generate and a bare pass of the other"
        record(f"processor's own work, {rows} rows", median["processor"] / least, against=both_passes, at_most=1.1)
        record(f"smc, {rows} rows", median["smc"] / median["pool"], against="the pool at equal rows", at_most=1.3)
        if rows == 16:
            gain = median["smc without caches"] / median["smc"]
            record("smc without caches, 16 rows", gain, against="smc", at_least=4)


if __name__ == "__main__":
    main()
