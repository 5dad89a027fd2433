"""Shims, each a file with the name of the module it stands for; `finder` serves them."""
