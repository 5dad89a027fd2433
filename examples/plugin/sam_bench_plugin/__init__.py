"""Two methods that sam-bench does not have, found by it through entry points."""
