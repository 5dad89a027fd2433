"""Studies: questions that take many runs, each with a plan that states its rules before the runs."""
