"""The command line: sibert pretrain | fill-mask | report | env."""

from sibert.cli.app import main

__all__ = ["main"]
