"""Every causal language model of the installed transformers, built tiny, scored, saved, loaded and scored again."""
