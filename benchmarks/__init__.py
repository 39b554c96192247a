"""One script a promise: each prints ratios against a reference timed in the same minutes."""
