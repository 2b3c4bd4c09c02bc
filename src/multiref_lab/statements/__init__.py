"""The claims, one idea a file. A function under `@claim` is one of them; nothing lists them.

A claim says what is stated, where (found in a paper, or derived by us), the number it predicts,
how that is measured and by which rule it is decided.
"""
