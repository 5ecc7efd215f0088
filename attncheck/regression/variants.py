"""Several baselines of one check: the plain one, and variants by device and dtype.

``test_x.json`` serves every machine that has no better one. ``test_x@cuda-9.json`` serves CUDA
devices of capability 9.x only, ``test_x@bfloat16.json`` that dtype only, and
``test_x@cuda-9-bfloat16.json`` both together. A part that does not match rules a variant out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attncheck.errors import BaselineError
from attncheck.regression.baseline import Baseline
from attncheck.regression.environment import Environment
from attncheck.tolerances import TOLERANCES

__all__ = ["Choice", "choose", "owner_of", "target_of"]

DTYPE = re.compile(rf"(?:(?P<device>.+?)-?)??(?P<dtype>{'|'.join(TOLERANCES)})?")


@dataclass(frozen=True)
class Choice:
    """The baseline that serves here.

    Attributes:
        plain: The file without variant.
        path: The file chosen.
        baseline: What it holds; None if no file serves.
        variant: ``"cuda-9"``, empty for the plain file.
        among: How many files there are for this check.
    """

    plain: Path
    path: Path
    baseline: Baseline | None
    variant: str
    among: int


def choose(plain: Path, here: Environment) -> Choice:
    """Choose the variant that fits best, else the plain file.

    Args:
        plain: The file without variant.
        here: Where the test runs.

    Raises:
        BaselineError: The file that serves cannot be read.
    """
    found = dict(_variants(plain))
    if plain.exists():
        found[""] = plain
    fitting = {name: fit for name in found if (fit := _fit(name, here)) is not None}
    if not fitting:
        return Choice(plain, plain, None, "", len(found))
    variant = max(fitting, key=lambda name: (fitting[name], name))
    path = found[variant]
    return Choice(plain, path, read_baseline(path), variant, len(found))


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        BaselineError: It cannot be read, or is none; the message names the file.
    """
    try:
        return Baseline.from_text(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"baseline: {path} cannot be read ({error})") from None
    except BaselineError as error:
        raise BaselineError(
            f"baseline: {path} {error}. It is never overwritten: restore it from version control, "
            "or delete it and record it again"
        ) from None


def target_of(choice: Choice, here: Environment) -> Path:
    """Return the file that an update writes.

    What was recorded on another device or dtype stays: then it is a variant that is written.
    """
    if choice.baseline is None or choice.baseline.environment.serves(here):
        return choice.path
    other = choice.baseline.environment
    if choice.variant and choice.plain.exists():
        other = read_baseline(choice.plain).environment
    parts = [here.family] if here.family != other.family else []
    parts += [here.dtype] if here.dtype != other.dtype else []
    name = f"{choice.plain.stem}@{'-'.join(parts)}.json" if parts else choice.plain.name
    return choice.plain.with_name(name)


def owner_of(path: Path) -> tuple[str, str]:
    """Split the name of a baseline file into that of its check and the variant.

    Example:
        >>> owner_of(Path("test_x@cuda-9.json"))
        ('test_x', 'cuda-9')
    """
    stem, _, variant = path.name.removesuffix(".json").partition("@")
    return stem, variant


def _variants(plain: Path) -> Iterator[tuple[str, Path]]:
    if plain.parent.is_dir():
        start = plain.stem + "@"
        for path in sorted(plain.parent.iterdir()):
            if path.name.startswith(start) and path.suffix == ".json":
                yield owner_of(path)[1], path


def _fit(variant: str, here: Environment) -> int | None:
    """Count the parts of a variant that match; None if one does not."""
    if not variant:
        return 0
    match = DTYPE.fullmatch(variant)
    assert match is not None
    device, dtype = match["device"], match["dtype"]
    if device not in (None, here.family) or dtype not in (None, here.dtype):
        return None
    return (device is not None) + (dtype is not None)
