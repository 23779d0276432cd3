"""What an engine and its workers share: frames, shared memory, and how values and failures travel."""
