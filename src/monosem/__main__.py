"""`python -m monosem`: the command line."""

from monosem.cli.main import run

run()
