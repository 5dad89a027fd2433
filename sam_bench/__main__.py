"""`python -m sam_bench`, which is what `torchrun -m` needs."""

from sam_bench.cli.main import main

if __name__ == "__main__":
    main()
