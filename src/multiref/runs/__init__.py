"""What `multiref train` and `multiref sweep` are made of: the configuration of a run, its folder, its execution, its report.

A run is a text: `settings.py` says what can be written, `config.py` reads it, `folder.py` keeps what comes out, `execute.py` does it."""
