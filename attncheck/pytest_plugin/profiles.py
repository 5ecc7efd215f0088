"""``--attncheck-profiles=DIR``: profiles that tests add up, over all workers of pytest-xdist.

Each process adds up what its own tests hand in; at its end a worker hands the sums to the
controller, which adds up those of all workers and alone writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from attncheck.profile import HeadProfile

__all__ = ["AttentionProfiles", "add_options", "attention_profiles", "configure"]

KEY: Final = "attncheck_profiles"
PROFILES = pytest.StashKey["AttentionProfiles"]()
NAME: Final = re.compile(r"[\w-][\w.-]{0,99}")


class AttentionProfiles:
    """What the fixture `attention_profiles` hands out: one sum of profiles for each name."""

    def __init__(self) -> None:
        self.held: dict[str, HeadProfile] = {}
        self.counts: dict[str, int] = {}

    def add(self, profile: HeadProfile, name: str = "heads") -> None:
        """Add a profile to those of the same name, in this and in every other test and worker.

        Args:
            profile: Of one or several batches, such as `profile_model` returns.
            name: Of the model, and of the file ``DIR/name.json``.

        Raises:
            TypeError: It is no profile.
            ValueError: It is of other layers or heads than those before, or the name names no file.
        """
        from attncheck.profile import HeadProfile

        if not isinstance(profile, HeadProfile):
            raise TypeError(f"profile: is {type(profile).__name__}; expected a HeadProfile")
        if not NAME.fullmatch(name):
            raise ValueError(f"name: {name!r}; expected letters, digits, '-', '_' and '.' only")
        self._add(name, profile, 1)

    def _add(self, name: str, profile: HeadProfile, count: int) -> None:
        before = self.held.get(name)
        self.held[name] = profile if before is None else before.merge(profile)
        self.counts[name] = self.counts.get(name, 0) + count

    def to_text(self) -> str:
        """Everything, exact, as text that crosses processes."""
        held = {n: [self.counts[n], profile.to_dict()] for n, profile in self.held.items()}
        return json.dumps(held, allow_nan=False, separators=(",", ":"))

    def add_text(self, text: str) -> Iterator[str]:
        """Add what `to_text` gave; name each profile that does not add to those of other workers.

        Yields:
            Why, one line a profile.
        """
        from attncheck.profile import HeadProfile

        for name, (count, held) in json.loads(text).items():
            try:
                self._add(name, HeadProfile.from_dict(held), count)
            except ValueError as error:
                yield f"{name}: {error}"


@pytest.fixture(scope="session")
def attention_profiles(pytestconfig: pytest.Config) -> AttentionProfiles:
    """``attention_profiles.add(profile, "name")``: one table of all that tests measure.

    With ``--attncheck-profiles=DIR`` it is written to ``DIR/name.json`` at the end of the run.
    Under pytest-xdist it is the table of one process: counts bit for bit, sums to rounding.
    """
    return pytestconfig.stash[PROFILES]


def add_options(group: pytest.OptionGroup) -> None:
    """Add the option."""
    group.addoption(
        "--attncheck-profiles",
        metavar="DIR",
        default=None,
        help="Write what tests add to the fixture attention_profiles to DIR, one JSON file a name, "
        "added up over all workers of pytest-xdist. Default: write nothing.",
    )


def configure(config: pytest.Config) -> None:
    """Reject a place that cannot be; begin to collect."""
    given = config.getoption("--attncheck-profiles")
    profiles = config.stash[PROFILES] = AttentionProfiles()
    if given is None:
        return
    folder = Path(config.invocation_params.dir, given)
    if not given or (folder.exists() and not folder.is_dir()):
        what = f"{given} is a file" if given else "is empty"
        raise pytest.UsageError(f"--attncheck-profiles: {what}; expected a folder")
    worker = hasattr(config, "workerinput")
    sender = Sender(profiles) if worker else Writer(profiles, folder)
    config.pluginmanager.register(sender, "attncheck-profiles")


class Sender:
    """A worker: hands its sums over at its end."""

    def __init__(self, profiles: AttentionProfiles) -> None:
        self._profiles = profiles

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: Any) -> None:
        """Hand over."""
        session.config.workeroutput[KEY] = self._profiles.to_text()


class Writer:
    """The controller, or the only process: adds up and writes."""

    def __init__(self, profiles: AttentionProfiles, folder: Path) -> None:
        self._profiles, self._folder = profiles, folder
        self._sent: dict[str, str] = {}
        self._trouble: list[str] = []
        self._written: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker hands over; one that crashed hands over nothing."""
        sent = getattr(node, "workeroutput", {}).get(KEY)
        if sent is None:
            self._trouble.append(
                f"worker {node.gateway.id} ended without handing over what its tests had added"
            )
        else:
            self._sent[node.gateway.id] = sent

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write whole tables, or say why none: half a table would pass for a whole one."""
        for worker in sorted(self._sent):
            self._trouble += self._profiles.add_text(self._sent[worker])
        if not self._trouble:
            try:
                for name, profile in sorted(self._profiles.held.items()):
                    path = profile.save(self._folder / f"{name}.json")
                    count = self._profiles.counts[name]
                    self._written.append(f"{path}: {profile!r}, {count} added")
            except OSError as error:
                self._trouble.append(f"{self._folder}: {error.strerror}")
        if self._trouble and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what was written, or why nothing was."""
        for line in self._written:
            terminalreporter.write_line(f"attncheck profiles: {line}")
        for line in self._trouble:
            terminalreporter.write_line(f"attncheck profiles: not written: {line}", red=True)
