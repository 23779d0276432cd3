"""Worker processes as a place to run: this side of each worker."""
