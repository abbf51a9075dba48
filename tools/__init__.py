"""Programs that make what ships with the package: the embedded model, the tasks, the recorded runs, result tables."""
