"""Build one family, capture it in each backend, judge it: one JSON line comes out."""

from __future__ import annotations

import collections
import os
import warnings
from typing import Any, Final

import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, AttentionMaps, CaptureError
from benchmarks import _families_configs as configs
from benchmarks import _torchvision_stub
from benchmarks._families_inputs import input_candidates
from benchmarks._families_judge import KernelCount, returned_maps, unmatched

__all__ = ["names", "run"]

CLOSE: Final = 1e-5
UNUSED: Final = "softmax over query and key"
TRIES: Final = 60
"""Most forward calls spent on finding inputs."""


def names(zoo: str) -> list[str]:
    """Name the families of a zoo."""
    _torchvision_stub.install()
    if zoo == "transformers":
        return list(configs.model_classes())
    from benchmarks import _families_timm as timm_zoo

    return list(timm_zoo.ATTENDING if zoo == "timm" else timm_zoo.WITHOUT)


def run(zoo: str, name: str) -> dict[str, Any]:
    """Build and judge one family."""
    torch.set_num_threads(1)
    _torchvision_stub.install()
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    row: dict[str, Any] = {"zoo": zoo, "family": name}
    try:
        model, inputs = _transformers(name, row) if zoo == "transformers" else _other(name)
    except configs.NotBuildableError as error:
        return {**row, "verdict": "not buildable", "why": str(error)[:600]}
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    backends = ("default", "eager") if zoo == "transformers" else ("default",)
    for backend in backends:
        row[backend] = _captured(model, inputs, backend)
    row["verdict"], row["why"] = _verdict(row)
    return row


def _transformers(name: str, row: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    transformers.logging.set_verbosity(50)
    class_name = configs.model_classes()[name]
    row["class"] = class_name
    try:
        cls, config_class = configs.resolve(name, class_name)
    except configs.NotBuildableError:
        raise
    except Exception as error:
        raise configs.NotBuildableError(f"cannot be imported: {_line(error)}") from None
    failures: list[str] = []
    built = 0
    for way, config in configs.config_candidates(config_class):
        try:
            model = configs.small_model(cls, config)
        except Exception as error:
            failures.append(f"{way}: {_line(error)}")
            continue
        built += 1
        inputs = _working(model, row, failures)
        if inputs is not None:
            row["built"] = way
            return model, inputs
        if built == 4:
            break
    raise configs.NotBuildableError("; ".join(dict.fromkeys(failures))[:600] or "nothing worked")


def _working(model: nn.Module, row: dict[str, Any], failures: list[str]) -> dict[str, Any] | None:
    """Return the first inputs that the model accepts."""
    for tried, (label, inputs) in enumerate(input_candidates(model)):
        if tried > TRIES:
            break
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception as error:
            failures.append(f"{label}: {_line(error)}")
            continue
        row["inputs"] = label
        return inputs
    return None


def _other(name: str) -> tuple[nn.Module, dict[str, Any]]:
    from benchmarks import _families_timm as timm_zoo

    make = {**timm_zoo.ATTENDING, **timm_zoo.WITHOUT}[name]
    try:
        model, inputs = make()
        with torch.no_grad():
            model(**inputs)
    except Exception as error:
        raise configs.NotBuildableError(_line(error)) from None
    return model, inputs


def _captured(model: nn.Module, inputs: dict[str, Any], backend: str) -> dict[str, Any]:
    """Capture strictly, and describe what came against what the model says and did."""
    if backend == "eager":
        try:
            model = configs.in_eager(model)
        except Exception as error:
            return {"status": "no such backend", "why": _line(error)}
    found: dict[str, Any] = {
        "implementation": getattr(getattr(model, "config", None), "_attn_implementation", None)
    }
    before = _called(model, inputs)
    with KernelCount() as kernels:
        _called(model, inputs)
    found |= {"fused": kernels.fused, "softmax": kernels.softmax, "idle": kernels.idle}
    torch.manual_seed(5)
    try:
        maps = AttentionExtractor(model).get_attention(**inputs)
    except CaptureError as error:
        none = str(error).startswith("captured no attention")
        return {**found, "status": "none" if none else "refused", "why": str(error)[:600]}
    after = _called(model, inputs)
    found |= {
        "status": "captured",
        "layers": len(maps),
        "kinds": dict(collections.Counter(layer.kind for layer in maps.layers)),
        "recorders": dict(collections.Counter(layer.backend for layer in maps.layers)),
        "traceless": _equal(before, after),
    }
    if backend == "eager":
        found |= _against_model(model, inputs, maps)
    return found


def _called(model: nn.Module, inputs: dict[str, Any]) -> Any:
    torch.manual_seed(5)
    with torch.no_grad():
        return model(**inputs)


def _against_model(model: nn.Module, inputs: dict[str, Any], maps: AttentionMaps) -> dict[str, Any]:
    torch.manual_seed(5)
    try:
        with torch.no_grad():
            returned = returned_maps(model(**inputs, output_attentions=True))
    except Exception as error:
        return {"returned": 0, "returned_error": _line(error)}
    missing, difference = unmatched(returned, list(maps.layers))
    shapes = sorted({str(tuple(tensor.shape)) for tensor in returned})[:3] if missing else []
    return {
        "returned": len(returned),
        "missing": missing,
        "difference": difference,
        "missing_shapes": shapes,
    }


def _verdict(row: dict[str, Any]) -> tuple[str, str]:
    """One word for a family, and why where it is no good one."""
    runs = [row[backend] for backend in ("default", "eager") if backend in row]
    runs = [run for run in runs if run["status"] != "no such backend"]
    for run in runs:
        attentions = run["fused"] + run["softmax"]
        if run["status"] == "none" and attentions == 0 and UNUSED not in run["why"]:
            continue
        if run["status"] in ("none", "refused"):
            return "refused", run["why"]
        if attentions == 0 and not any(each.get("returned") for each in runs):
            return "wrong", f"captured {run['layers']} where no kernel computed attention"
        if run["layers"] < attentions:
            return "wrong", f"{attentions} attentions in the kernels, {run['layers']} captured"
        if run.get("missing"):
            return "wrong", (
                f"{run['missing']} of {run['returned']} returned maps not captured: "
                f"{', '.join(run['missing_shapes'])}"
            )
        if run.get("difference", 0) > CLOSE:
            return "wrong", f"differs from the returned maps by {run['difference']:.1e}"
        if not run["traceless"]:
            return "wrong", "the model's output changed after capture"
    if all(run["status"] == "none" for run in runs):
        return "no attention", ""
    return ("exact" if runs[-1].get("returned") else "faithful"), ""


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape == after.shape and bool(
            torch.equal(before.nan_to_num(0), after.nan_to_num(0))
            if before.is_floating_point()
            else torch.equal(before, after)
        )
    if hasattr(before, "items") and hasattr(after, "items"):
        return all(_equal(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return all(_equal(one, other) for one, other in zip(before, after, strict=True))
    return True


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:140] if text else ''}"
