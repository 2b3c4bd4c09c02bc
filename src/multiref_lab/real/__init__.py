"""A real language model from a package, aligned under three references end to end on two cores: warm start, specialists,
the base's own answers paired, scoring, `inspect`, training, evaluation. Every piece is the library's.

`run.run(settings, output, ...)` does all of it and keeps each stage; `page.write` shows what came out.
"""
