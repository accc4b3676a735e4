"""One attention instance: requests to batches to tokens."""
