"""`attncheck compare`: which heads behave differently, and when they began to."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from attncheck.cli import changes, history, trajectory
from attncheck.cli.arguments import ids_of, layers_of
from attncheck.cli.names import require_there
from attncheck.cli.page import require_page, write_report
from attncheck.cli.problem import CommandError
from attncheck.cli.sides import (
    Setting,
    Side,
    into_model,
    is_state,
    run_side,
    saved_side,
)
from attncheck.cli.subject import Request, Subject, load_subject
from attncheck.progress import Progress

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    page = require_page(args.report) if args.report is not None else None
    progress = Progress()
    job = _Job(args, progress)
    try:
        with redirect_stdout(sys.stderr):  # what models print must not mix with the result
            module, result = job.result()
            if args.plot is not None:
                result.files.append(_plot(result, args.plot))
            if page is not None:
                progress.say("writing the page")
                result.files.append(write_report(page, module.page_of(result)))
    finally:
        progress.done()
    if args.json:
        print(json.dumps(module.to_json(result), indent=2, allow_nan=False))
    else:
        print(module.render(result, every=args.all))
    return int(module is changes and _beyond(result, strict=args.strict))


def _beyond(found: changes.Comparison, *, strict: bool) -> bool:
    return found.judgement.verdict == "changed" or (strict and found.judgement.verdict == "drifted")


@dataclass
class _Job:
    """What the arguments ask for, loaded step by step."""

    args: argparse.Namespace
    progress: Progress
    first: Subject | None = None

    def result(self) -> tuple[Any, Any]:
        """Do what was asked; return the module that presents the result, and the result."""
        for name in (self.args.a, self.args.b, self.args.into):
            require_there(name)
        histories = [name for name in (self.args.a, self.args.b) if history.is_history(name)]
        if histories and self.args.b is not None:
            raise CommandError(f"{histories[0]}: a history is shown alone; two have no same steps")
        if histories:
            return history, history.read_history(histories[0])
        steps = self.checkpoints()
        if steps is None:
            return changes, self.compare()
        return trajectory, trajectory.follow(steps, self.progress)

    def checkpoints(self) -> list[tuple[str, Callable[[], Side]]] | None:
        """The checkpoints of a folder, each to be measured by a call; None: two sides."""
        given = self.args.a
        if given is None or self.args.b is not None or not Path(given).is_dir():
            return None
        found = trajectory.checkpoints_in(Path(given), states=self.args.into is not None)
        if not found:
            return None
        for name in ("dtype_b", "backend_b"):
            if getattr(self.args, name):
                raise CommandError(
                    f"--{name.replace('_', '-')}: {given} is a folder of checkpoints"
                )
        return [(name, partial(self.side, str(path), "a")) for name, path in found]

    def compare(self) -> changes.Comparison:
        """Measure both sides and judge."""
        args = self.args
        if args.plot is not None:
            raise CommandError("--plot: draws a folder of checkpoints; use --report for two sides")
        same = args.b is None or args.b == args.a
        if same and (args.dtype_a, args.backend_a) == (args.dtype_b, args.backend_b):
            raise CommandError(
                "B: the same as A; name a second model or file, or pass --dtype-b or --backend-b"
            )
        a = self.side(args.a, "a")
        b = self.side(args.a if args.b is None else args.b, "b", same=same)
        self.progress.say("comparing")
        try:
            return changes.compare_sides(a, b, args.atol)
        except ValueError as error:
            raise CommandError(f"B: {str(error).removeprefix('other: ')}") from None

    def side(self, name: str | None, which: str, *, same: bool = False) -> Side:
        """Measure one side; a second model is called with the inputs of the first."""
        args = self.args
        setting = Setting(getattr(args, f"dtype_{which}"), getattr(args, f"backend_{which}"))
        state = name is not None and args.into is not None and is_state(Path(name))
        saved = None if name is None or state else saved_side(name)
        if saved is not None:
            if str(setting):
                raise CommandError(f"--dtype-{which}, --backend-{which}: {name} is saved")
            return saved
        self.progress.say(f"running {name or 'the shipped model'}{setting}")
        if args.into is not None and not state:
            raise CommandError(f"{name}: no state dict (.safetensors, .pt) for --into {args.into}")
        subject = self._subject(args.into if state else name, same=same or state)
        if state:
            subject = into_model(subject, Path(str(name)))
        shown = str(name) if state else subject.name
        return run_side(shown, subject, setting, layers_of(args.layers))

    def _subject(self, name: str | None, *, same: bool) -> Subject:
        args = self.args
        request = Request(name, args.text, ids_of(args.tokens), args.max_tokens, args.device)
        if self.first is None:
            self.first = load_subject(request)
            return self.first
        if same:
            return self.first
        other = load_subject(replace(request, any_prompt=True))
        note = other.note
        if other.tokens != self.first.tokens:
            note = "called with the inputs of A"
        first = self.first
        return replace(other, args=first.args, kwargs=first.kwargs, tokens=first.tokens, note=note)


def _plot(found: Any, path: str) -> str:
    from attncheck.plot.history import plot_history
    from attncheck.plot.trajectory import plot_trajectory

    if not path:
        raise CommandError("--plot: empty; expected a file such as when.png")
    try:
        if isinstance(found, history.History):
            plot_history(found.held, save_path=path)
        else:
            plot_trajectory(found.steps, found.profiles, labels=found.labels, save_path=path)
    except OSError as error:
        raise CommandError(f"--plot: cannot write {path}: {error.strerror}") from None
    except ValueError as error:
        raise CommandError(f"--plot: {str(error).removeprefix('save_path: ')}") from None
    return path
