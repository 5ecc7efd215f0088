"""What a failed assertion leaves on disk: the finding, the head's numbers, a picture."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from attncheck.checks.finding import Evidence, Finding

__all__ = ["folder_name", "write_artifacts"]

LONGEST: Final = 120
"""Characters of a folder name; file systems allow 255 bytes."""

OLD: Final = ("finding*.json", "attn*.npz", "L*H*.png")


def write_artifacts(
    folder: Path, nodeid: str, findings: list[Finding], *, before: int = 0
) -> list[Path]:
    """Write the findings of one test to a folder of their own; return the files.

    Names say nothing of time or process, so that a second run overwrites the first. The top folder
    gets a ``.gitignore`` when it is made.

    Args:
        folder: Of all artifacts.
        nodeid: Of the test.
        findings: What failed; more than one where a test raised a group.
        before: How many findings this test has written in this run; with none, what an earlier run
            left goes.
    """
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    own = folder / folder_name(nodeid)
    own.mkdir(exist_ok=True)
    for pattern in OLD if not before else ():
        for stale in own.glob(pattern):
            stale.unlink()
    paths: list[Path] = []
    for number, finding in enumerate(findings, start=before + 1):
        suffix = "" if number == 1 else f"-{number}"
        if finding.evidence is not None:
            paths += _picture(own, suffix, finding, finding.evidence)
            paths.append(_numbers(own / f"attn{suffix}.npz", finding.evidence))
        path = own / f"finding{suffix}.json"
        described = {"schema": "attncheck.finding.1", "test": nodeid, **finding.to_dict()}
        text = json.dumps(described, indent=2, sort_keys=True, allow_nan=False, default=str)
        path.write_text(text + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def folder_name(nodeid: str) -> str:
    """Turn a node id into a folder name, always the same one, and no two alike.

    Example:
        >>> folder_name("tests/test_gpt2.py::test_causal")
        'tests_test_gpt2.py_test_causal'
        >>> folder_name("test_a.py::test_x[a/b]") != folder_name("test_a.py::test_x[a:b]")
        True
    """
    name = re.sub(r"[^\w.-]+", "_", nodeid)
    _, bracket, parameters = nodeid.partition("[")
    if len(name) > LONGEST or (bracket and re.search(r"[^\w.-]", parameters[:-1])):
        digest = hashlib.sha256(nodeid.encode(errors="surrogatepass")).hexdigest()[:8]
        name = f"{name[: LONGEST - 9].rstrip('_')}-{digest}"
    return name


def _numbers(path: Path, evidence: Evidence) -> Path:
    arrays: dict[str, Any] = {
        "weights": evidence.weights,
        "offending": evidence.offending,
        "visible": evidence.visible,
        "batch": evidence.batch,
        "query_start": evidence.query_start,
        "key_start": evidence.key_start,
    }
    if evidence.expected is not None:
        arrays["expected"] = evidence.expected
    if evidence.tokens is not None:
        arrays["tokens"] = np.array([str(token) for token in evidence.tokens])
    np.savez_compressed(path, **arrays)
    return path


def _picture(own: Path, suffix: str, finding: Finding, evidence: Evidence) -> list[Path]:
    """Draw the head; matplotlib is loaded only here."""
    from attncheck.pytest_plugin.panels import draw_evidence

    head = evidence.head.replace(" ", "_")
    return [draw_evidence(evidence, finding.verdict, own / f"{head}{suffix}.png")]
