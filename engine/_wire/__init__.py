"""What an engine and its workers share: frames, shared memory, and how values, predictors and failures travel.

Bytes and where they lie:

- `frames`: the frames on a worker's pipes, and commands and credit as frames.
- `nonblocking`: writes to a pipe that may be full; what it does not take is kept in order.
- `segments`: shared memory for large payloads, and the ring in which a worker puts partials.
- `incremental`: pickling, unpickling and copying in short steps, between which other threads get the GIL.

What is made of values:

- `encode`, `decode`: values and inputs to bytes with buffers beside them, and back.
- `targets`: predictors to bytes.
- `target_snapshots`: what a predictor was made of when it was sent, so that a changed one is sent again.
- `remote_profile`: the profile of a predictor that only a worker has imported.
- `failures`: exceptions, to what the other side can raise or show.

How pickle is told what to do:

- `picklers`: plain pickle where the other side can import everything, else cloudpickle; and what is said of a refusal.
- `by_reference`: which modules, classes and functions a worker finds under their names.
- `by_value`: cloudpickle for what it does not find.
- `typing_objects`: type variables, aliases and new types of scripts, by value and still one object each.
- `sentinels`: objects that are compared by identity, and stay one object each.
- `main_module`: the `__main__` that a script's predictors find in a worker.
"""
