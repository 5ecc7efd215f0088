"""`attncheck scan`: what every head of a model does on one prompt."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout

from attncheck.attention import LayerAttention, as_attention
from attncheck.capture import AttentionExtractor
from attncheck.cli.arguments import ids_of, layers_of
from attncheck.cli.folder import Folder
from attncheck.cli.names import asks_the_hub
from attncheck.cli.page import Page
from attncheck.cli.parsers.scan import DEFAULT_FOLDER
from attncheck.cli.pictures import Pictures
from attncheck.cli.problem import CommandError
from attncheck.cli.promises import checked, printed
from attncheck.cli.report import ScanResult, invalid_heads, render, to_json
from attncheck.cli.subject import Request, Subject, call_model, load_subject
from attncheck.errors import CaptureError
from attncheck.evaluate import profile_layer
from attncheck.profile import HeadProfile, LayerProfile
from attncheck.progress import Progress

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    folder = None if args.check else _folder(args)
    request = Request(
        args.model,
        args.text,
        ids_of(args.tokens),
        args.max_tokens,
        args.device,
        any_prompt=args.check and args.text is None,
    )
    progress = Progress()
    try:
        with redirect_stdout(sys.stderr):  # what models print must not mix with the result
            if asks_the_hub(request.model):
                progress.note(
                    f"{request.model} is no local folder: asking the Hugging Face hub "
                    "(HF_HUB_OFFLINE=1 looks in the local cache only)"
                )
            progress.say("loading the model")
            subject = load_subject(request)
            if args.check:
                progress.say("trying what the model promises")
                report = checked(subject, args.kind)
            else:
                result = _result(subject, args, folder, progress)
    finally:
        progress.done()
    if args.check:
        return printed(report, as_json=args.json)
    if args.json:
        print(json.dumps(to_json(result), indent=2, allow_nan=False))
    else:
        print(render(result, every=args.all))
    return 1 if result.findings else 0


def _result(
    subject: Subject, args: argparse.Namespace, folder: Folder | None, progress: Progress
) -> ScanResult:
    """Measure, and write what was asked for."""
    pictures = None
    if folder is not None and not args.no_plots:
        pictures = Pictures(folder, subject.name, subject.tokens)
    page = Page(args.report) if args.report else None
    result = _scan(subject, args.layers, pictures, page, progress)
    if folder is not None:
        result.files = _write(folder, result, pictures, progress)
    if page is not None:
        result.files.append(page.write(result))
    return result


def _scan(
    subject: Subject,
    layers: list[str] | None,
    pictures: Pictures | None,
    page: Page | None,
    progress: Progress,
) -> ScanResult:
    """Measure each layer as it is captured; no layer is kept."""
    profiles: list[LayerProfile] = []
    found: list[str] = []

    def measure(layer: LayerAttention) -> None:
        progress.say(f"layer {layer.index}: {layer.name}")
        profiled = profile_layer(layer, _tokens_for(layer, subject))
        profiles.append(profiled)
        wrong = _what_is_wrong(layer)
        found.extend(wrong)
        if page is not None:
            page.layer(layer)
        if pictures is not None and not wrong:
            pictures.layer(layer, HeadProfile([profiled]).classify())

    try:
        extractor = AttentionExtractor(subject.model, layers_of(layers), on_layer=measure)
    except ValueError as error:
        raise CommandError(f"--{error}") from None
    try:
        with extractor:
            call_model(subject)
    except CaptureError as error:
        raise CommandError(str(error)) from error
    except ValueError as error:
        raise CommandError(f"--{error}") from error
    profile = HeadProfile(profiles)
    found += [] if found else invalid_heads(profile)
    labels = profile.classify()
    return ScanResult(subject.name, subject.tokens, profile, labels, subject.note, found)


def _what_is_wrong(layer: LayerAttention) -> list[str]:
    """Why this is no attention, in one line; nothing if it is."""
    try:
        as_attention(layer, name=f"layer {layer.index} {layer.name}")
    except ValueError as error:
        return [" ".join(str(error).split())]
    return []


def _tokens_for(layer: LayerAttention, subject: Subject) -> list[list[str | int]] | None:
    """The tokens, where this layer's keys are those tokens."""
    tokens = subject.tokens
    fits = tokens is not None and len(tokens) == layer.batch and len(tokens[0]) == layer.n_key
    return tokens if fits and layer.kind != "cross" else None


def _write(
    folder: Folder, result: ScanResult, pictures: Pictures | None, progress: Progress
) -> list[str]:
    """Write the profile and what pictures remain; returns all paths.

    Of attention that is not valid only the layers that are have pictures: its sums are no numbers
    to keep.
    """
    folder.clear()
    try:
        if not result.findings:
            result.profile.save(folder.place("profile.json"))
        if pictures is not None:
            progress.say("drawing")
            if not result.findings:
                pictures.finish(result.profile, result.labels)
    except OSError as error:
        raise folder.problem(error) from None
    return [str(path) for path in folder.files]


def _folder(args: argparse.Namespace) -> Folder | None:
    """The folder to write to, if any."""
    name = args.out if args.out is not None else "" if args.json else DEFAULT_FOLDER
    return Folder(name) if name else None
