"""Online runs and distillation from one YAML file: `task: online` or `task: distill` in the file of `multiref train`."""
