"""The former name of ``jaxcifar port``, with the same arguments."""

from jaxcifar import cli

if __name__ == "__main__":
    cli.main("port")
