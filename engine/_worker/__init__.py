"""The program a worker process runs: the other side of `engine.runners.process`."""
