"""How a predictor is consumed: `create` and `stream`, from sync code and from asyncio.

- `executor`: the verbs, fast paths first.
- `resolve`: from a tag to a loaded predictor.
- `placement`: which runner serves a call.
- `opening`: from a checked call to its execution.
- `prediction`: from the end of an execution to a prediction, or to what is raised.
- `stream`: the two faces of a stream.
- `owner_work`: what would block an event loop, done in owner threads.
"""
