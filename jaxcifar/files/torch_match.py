"""Where a network's weights are among the tensors of a file, and what is wrong if they are not.

One rule: the keys of a whole copy are the network's own behind one prefix, apart from wrappers.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.errors import UserError, first_few, log
from jaxcifar.files.torch_files import to_numpy

# DataParallel, torch.compile, checkpointing, FSDP, Fabric; how a whole module is pickled.
WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
WRAPPERS |= {"_forward_module", "_modules", "_parameters", "_buffers"}
BATCHES = "num_batches_tracked"  # unknown to torch before 0.4.1; a count, and no weight
COUNTERS = BATCHES, "total_ops", "total_params", "n_averaged"  # of profilers, of AveragedModel
AVERAGE = re.compile(r"(?:^|[._])(?:ema|averaged?|swa|shadow)(?:[._]|$)", re.IGNORECASE)
CHOOSE = "choose with --ema or --prefix (for jaxcifar train, port it first)"
MAX_CLASSES = 100_000  # a file of a few bytes can claim a tensor that fills the memory

Shape = tuple[int, ...]


class Leaf(NamedTuple):
    """What a model has under a torch key; ``shape`` is in torch's order of axes."""

    path: tuple[str, ...]  # in the variables, as ("params", "features", "0", "kernel")
    shape: Shape
    dtype: np.dtype


Leaves = Mapping[str, Leaf]
Tensors = Mapping[str, Any]
Network = Callable[[int], Leaves]  # from the number of classes


class PortError(UserError):
    """Raised if tensors do not fit a model; ``problems`` has the shapes by kind and key."""

    def __init__(self, what: str, problems: dict[str, dict[str, object]]) -> None:
        self.problems, texts = problems, list[str]()
        for kind, shapes in problems.items():
            some = first_few([f"{key} {shape}" for key, shape in shapes.items()])
            texts += [f"{len(shapes)} {kind}: {some}"] if shapes else []
        super().__init__(f"{what}: {'; '.join(texts)}")


def check(what: str, expected: Leaves, tensors: Tensors) -> None:
    """Raise ``PortError`` if the tensors do not have the expected keys and shapes."""
    ours = {key: leaf.shape for key, leaf in expected.items()}
    theirs = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    absent = [key for key in ours if key not in theirs and not key.endswith(BATCHES)]
    others = [key for key in ours if key in theirs and theirs[key] != ours[key]]
    # Torch also takes the first value of one axis for no axis.
    others = [key for key in others if ours[key] or len(theirs[key]) != 1 or theirs[key] == (0,)]
    problems: dict[str, dict[str, object]] = {
        "missing": {key: ours[key] for key in absent},
        "unexpected": {key: shape for key, shape in theirs.items() if key not in ours},
        "of another shape": {key: f"{theirs[key]}, expected {ours[key]}" for key in others},
    }
    if any(problems.values()):
        raise PortError(what, problems)


class Match(NamedTuple):
    """A whole copy of a network's weights."""

    tensors: dict[str, Any]  # by the network's own keys
    leaves: Leaves  # of the network with as many classes
    num_classes: int
    averaged: bool


def match(
    tensors: Tensors, network: Network, source: object, problem: str, ema: bool, prefix: str | None
) -> Match:
    """Find the whole copy behind ``prefix``; else the average if ``ema``, else what is none."""
    names, wanted = _without_wrappers(tensors), _without_wrappers(network(10))
    needed = {name for name in wanted if not name.endswith(BATCHES)}
    counts = Counter(
        name[: dot.end()]
        for name in names
        for dot in re.finditer(r"^|\.", name)
        if name[dot.end() :] in needed
    )
    whole = [p for p, count in counts.items() if count == len(needed)]
    averages = [p for p in whole if AVERAGE.search(p)]
    copies = [p for p in whole if (p in averages) == ema]
    if prefix is not None:
        copies = [p for p in whole if p.rstrip(".") == prefix.rstrip(".")]
    if whole and not copies:
        raise UserError(f"{source} has no such copy, but {_listed(whole)}: {CHOOSE}")
    first, *others = copies or [max(counts, key=counts.__getitem__, default="")]  # the nearest
    for name in needed if others else ():
        one, *rest = (to_numpy(name, tensors[names[p + name]]) for p in (first, *others))
        if not all(np.array_equal(one, other) for other in rest):
            raise UserError(f"{source} has several copies, {_listed(copies)}: {CHOOSE}")
    keys = {key: names[first + name] for name, key in wanted.items() if first + name in names}
    shape = tensors[keys[last]].shape if (last := [*wanted.values()][-1]) in keys else ()
    num_classes = next(iter(shape), 0) or 10
    if not 0 < num_classes <= MAX_CLASSES:
        raise UserError(f"{source} has {num_classes} classes, at most {MAX_CLASSES} can be")
    taken = {*keys.values()}
    left = {name: key for name, key in names.items() if key not in taken}
    roots = tuple({f"{first}{name.partition('.')[0]}." for name in wanted}) if copies else first
    unknown = {
        name.removeprefix(first): tensors[key]
        for name, key in left.items()
        if name.startswith(roots) and not name.endswith(COUNTERS)
    }
    expected, copy = network(num_classes), {key: tensors[name] for key, name in keys.items()}
    check(f"{source} {problem}", expected, unknown | copy)
    if (key := next(iter(keys))) != keys[key]:
        log.info("%s: took the keys %s and so on", source, keys[key])
    if other := [p for p in averages if p != first]:
        log.info("%s: left %s, an average of the weights: --ema takes that", source, _listed(other))
    if other := [key for name, key in left.items() if not name.startswith(tuple(averages))]:
        log.info("%s: left %s", source, first_few(other))
    if len(keys) < len(wanted):
        log.info("%s: %d %s are missing: taken as 0", source, len(wanted) - len(keys), BATCHES)
    return Match(copy, expected, num_classes, first in averages)


def _without_wrappers(keys: Iterable[str]) -> dict[str, str]:
    """Return the keys by what is left without the names of wrappers, unless two are then equal."""
    keys = list(keys)
    names = [".".join(part for part in key.split(".") if part not in WRAPPERS) for key in keys]
    return dict(zip(names if len({*names}) == len(names) else keys, keys, strict=True))


def _listed(prefixes: Iterable[str]) -> str:
    return first_few([prefix.rstrip(".") or "the bare keys" for prefix in prefixes])
