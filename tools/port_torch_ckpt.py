"""The former name of ``jaxcifar port``, with the same arguments."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout needs no installation
from jaxcifar import cli

if __name__ == "__main__":
    cli.run("port")
