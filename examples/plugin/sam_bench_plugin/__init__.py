"""Two methods and an attack that sam-bench does not have, found by it through entry points."""
