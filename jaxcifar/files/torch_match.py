"""Where a network's weights are among the tensors of a file, and what is wrong if they are not.

One rule: the keys of a whole copy are the network's own behind one prefix, whatever it is. Wrappers
may stand anywhere in a key. What lies outside the copy is left, and said.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.errors import UserError, first_few, one_line
from jaxcifar.files.torch_files import to_numpy

# DataParallel, torch.compile, checkpointing, FSDP, Fabric; how a whole module is pickled.
WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
WRAPPERS |= {"_forward_module", "_modules", "_parameters", "_buffers"}
BATCHES = "num_batches_tracked"  # unknown to torch before 0.4.1; a count, and no weight
COUNTERS = {BATCHES, "total_ops", "total_params", "n_averaged"}  # of profilers, of AveragedModel
AVERAGE = re.compile(r"(?:^|[._])(?:ema|averaged?|swa|shadow)(?:[._]|$)", re.IGNORECASE)


class Leaf(NamedTuple):
    """What a model has under a torch key; ``shape`` is in torch's order of axes."""

    path: tuple[str, ...]  # in the variables, as ("params", "features", "0", "kernel")
    shape: tuple[int, ...]
    dtype: np.dtype


Leaves = Mapping[str, Leaf]


class PortError(UserError):
    """Raised if tensors do not fit a model; ``misshaped`` has actual and expected shapes."""

    def __init__(self, what: str, expected: Leaves, tensors: Mapping[str, Any]) -> None:
        counts = {key for key in expected if key.endswith(f".{BATCHES}")}
        self.missing = {k: x.shape for k, x in expected.items() if k not in tensors.keys() | counts}
        self.unexpected = {k: tuple(x.shape) for k, x in tensors.items() if k not in expected}
        pairs = {k: (tuple(tensors[k].shape), expected[k].shape) for k in expected if k in tensors}
        self.misshaped = {
            key: pair for key, pair in pairs.items() if key not in counts and not fits(*pair)
        }
        kinds: dict[str, Mapping[str, object]] = {"missing": self.missing}
        kinds["unexpected"] = self.unexpected
        kinds["of another shape"] = {
            k: f"{a}, expected {b}" for k, (a, b) in self.misshaped.items()
        }
        parts = []
        for kind, shapes in kinds.items():
            some = [f"{key} {shape}" for key, shape in shapes.items()][:4]
            some += [f"and {len(shapes) - 4} more"] if len(shapes) > 4 else []
            parts += [f"{len(shapes)} {kind}: {', '.join(some)}"] if some else []
        super().__init__(f"{what}: {'; '.join(parts)}")

    def table(self) -> str:
        """Return the missing and unexpected keys by module, each with the nearest of the others."""
        missing, unexpected = map(_by_module, (self.missing, self.unexpected))
        lines = []
        for title, modules, others in (
            ("only the network has", missing, unexpected),
            ("only the file has", unexpected, missing),
        ):
            for module, names in modules.items():
                near = difflib.get_close_matches(module, others, n=1, cutoff=0.6)
                hint = f" (nearest: {near[0]}.{{{', '.join(others[near[0]])}}})" if near else ""
                lines.append(f"{title} {module}.{{{', '.join(names)}}}{hint}")
        return "\n".join(map(one_line, lines))


def fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether torch takes this shape; of one axis it takes the first value for none."""
    return shape == expected or (not expected and len(shape) == 1 and shape[0] > 0)


class Match(NamedTuple):
    """A whole copy of a network's weights."""

    keys: dict[str, str]  # in the file, by the network's own
    averaged: bool
    notes: list[str]  # what a user should know


def match(
    tensors: Mapping[str, Any],
    expected: Leaves,
    source: object,
    problem: str,
    *,
    ema: bool = False,
    prefix: str | None = None,
) -> Match:
    """Find the whole copy behind ``prefix``; else the average if ``ema``, else what is none.

    Raises ``PortError`` if no copy is whole, and ``UserError`` if several are that differ.
    """
    names, wanted = _without_wrappers(tensors), _without_wrappers(expected)
    needed = [name for name, key in wanted.items() if not key.endswith(BATCHES)]
    whole = [p for p in _prefixes(names, needed[0]) if all(p + n in names for n in needed)]
    averages = [p for p in whole if AVERAGE.search(p)]
    copies = averages if ema else [p for p in whole if p not in averages]
    if prefix is not None:
        copies = [p for p in whole if p.rstrip(".") == prefix.rstrip(".")]
    if whole and not copies:
        kind = f"copy {prefix}" if prefix is not None else "EMA copy" if ema else "other copy"
        raise UserError(
            f"{source} has no {kind}, but {_listed(whole)}: see jaxcifar port --ema and --prefix"
        )
    if not copies:
        counts = Counter(prefix for name in needed for prefix in _prefixes(names, name))
        best = counts.most_common(1)[0][0] if counts else ""
        inside = {n.removeprefix(best): tensors[k] for n, k in names.items() if n.startswith(best)}
        plain = {name: expected[key] for name, key in wanted.items()}
        raise PortError(f"{source} {problem}", plain, inside)
    head = needed[-1].rpartition(".")[0]  # its shapes depend on the number of classes
    body = {n: expected[wanted[n]].shape for n in needed if n.rpartition(".")[0] != head}
    fit = [p for p in copies if all(fits(tensors[names[p + n]].shape, body[n]) for n in body)]
    first, *others = sorted(fit or copies, key=len)
    for other in others:
        pairs = [[to_numpy(n, tensors[names[p + n]]) for p in (first, other)] for n in needed]
        if not all(np.array_equal(one, two) for one, two in pairs):
            problem = f"{source} has several copies, {_listed(copies)}"
            raise UserError(f"{problem}: choose with jaxcifar port --prefix")
    keys = {key: names[first + name] for name, key in wanted.items() if first + name in names}
    rest = {k: n.removeprefix(first) for n, k in names.items() if k not in {*keys.values()}}
    roots = {name.partition(".")[0] for name in wanted}
    unknown = {
        key: tensors[key]
        for key, name in rest.items()
        if name.partition(".")[0] in roots and name.rpartition(".")[2] not in COUNTERS
    }
    if unknown:
        inside = {k: tensors[v] for k, v in keys.items()}
        raise PortError(f"{source} {problem}", expected, inside | unknown)
    notes = []
    if names[first + needed[0]] != needed[0]:
        notes.append(f"took the keys {names[first + needed[0]]} and so on")
    if left := [p for p in averages if p != first]:
        notes.append(f"left {_listed(left)}, an average of the weights: --ema takes that")
    if left := [k for k, n in rest.items() if not any(k.startswith(p) for p in averages)]:
        notes.append(f"left {first_few(left)}")
    if missing := [key for key in expected if key not in keys]:
        notes.append(f"{len(missing)} {BATCHES} are missing: taken as 0")
    return Match(keys, first in averages, notes)


def _prefixes(names: Iterable[str], name: str) -> list[str]:
    """Return what stands before ``name`` wherever it ends a name as a whole."""
    return [n.removesuffix(name) for n in names if n == name or n.endswith(f".{name}")]


def _without_wrappers(keys: Iterable[str]) -> dict[str, str]:
    """Return the keys by what is left without the names of wrappers, unless two are then equal."""
    keys = list(keys)
    names = [".".join(part for part in key.split(".") if part not in WRAPPERS) for key in keys]
    return dict(zip(names if len({*names}) == len(names) else keys, keys, strict=True))


def _by_module(keys: Iterable[str]) -> dict[str, list[str]]:
    modules: dict[str, list[str]] = {}
    for key in keys:
        module, _, name = key.rpartition(".")
        modules.setdefault(module, []).append(name)
    return modules


def _listed(prefixes: Iterable[str]) -> str:
    return first_few([prefix.rstrip(".") or "the bare keys" for prefix in prefixes])
