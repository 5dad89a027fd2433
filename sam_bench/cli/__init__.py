"""The command line: parse, call `sam_bench.api`, print. One file a group of commands."""
