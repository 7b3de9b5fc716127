"""Lists the commands: ``python -m jaxcifar``."""

import sys
from collections.abc import Sequence

from jaxcifar import __version__, cli
from jaxcifar.errors import UserError

COMMANDS = {
    "train": "trains a network; leaves checkpoints and a report",
    "evaluate": "prints how good weights are on test images",
    "predict": "names what image files show",
    "report": "makes the pictures and page of runs",
    "export": "writes weights for torch, safetensors or any JAX",
}


def listing() -> str:
    """The commands, a line each."""
    lines = [f"  python -m jaxcifar.{name:9} {what}" for name, what in COMMANDS.items()]
    more = "Each takes --help. tools/port_torch_ckpt.py moves checkpoints from and to torch."
    return "\n".join([f"jaxcifar {__version__}", "", *lines, "", more])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    name, *_ = [*(sys.argv[1:] if argv is None else argv), "--help"]
    if name not in ("--help", "-h"):
        ask = f"python -m jaxcifar.{name}" if name in COMMANDS else "python -m jaxcifar"
        raise UserError(f"{name} is not an option here: run {ask}")
    print(listing())


if __name__ == "__main__":
    cli.run(main, prog="jaxcifar")
