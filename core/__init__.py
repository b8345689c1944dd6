"""The middle of the line, as pure functions over `(K, ...)` batches. Numpy only."""
