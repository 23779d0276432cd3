"""The program a worker process runs: the other side of `engine.runners.process`.

- `main`: starts the program, and ends it with the engine.
- `host`: takes commands, makes predictors ready and runs calls, in the main thread; its signals and its forks.
- `loop`: the event loop that the main thread runs for async predictors.
- `stop_reader`: the thread that reads requests to stop.
- `outlet`: the owner's end of a call's channel, whose partials leave as frames.
- `flusher`: the thread that sends partials which were batched.
- `pipes`: the worker's ends of its pipes, and what a full one did not take.
- `process_state`: signals, timers and streams of the process, restored after every call; threads of the engine's own.
"""
