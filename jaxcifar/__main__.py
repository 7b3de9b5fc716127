"""``python -m jaxcifar`` is the ``jaxcifar`` command."""

from jaxcifar import cli

cli.main()
