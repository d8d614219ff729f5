"""`python -m sibert`: the command line, for instance under torchrun."""

from sibert.cli import main

if __name__ == "__main__":
    main()
