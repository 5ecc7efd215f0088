"""One architecture against every promise: float32 and bfloat16, eager and sdpa."""

from __future__ import annotations

import time
import warnings
from typing import Any, Final

import torch
from torch import nn

from attncheck import ModelSubject, check_model
from benchmarks import _families_configs as configs
from benchmarks import _torchvision_stub

__all__ = ["DTYPES", "FAMILIES", "small_family", "swept"]

DTYPES: Final = (torch.float32, torch.bfloat16)

DECODERS: Final = (
    *("apertus", "arcee", "bamba", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2"),
    *("ctrl", "cwm", "deepseek_v2", "deepseek_v3", "diffllama", "doge", "dots1", "ernie4_5"),
    *("ernie4_5_moe", "exaone4", "falcon", "flex_olmo", "gemma", "gemma2"),
    *("gemma3_text", "gemma4_text", "glm", "glm4", "glm4_moe", "gpt-sw3", "gpt2"),
    *("gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite"),
    *("granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense", "imagegpt", "jais2"),
    *("jamba", "jetmoe", "lfm2", "llama", "llama4_text", "longcat_flash", "mamba", "minimax"),
    *("ministral", "mistral", "mixtral", "modernbert-decoder", "mpt", "nanochat", "nemotron"),
    *("olmo", "olmo2", "olmo3", "olmoe", "openai-gpt", "opt", "persimmon", "phi"),
    *("phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe", "seed_oss"),
    *("smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm", "youtu"),
)
ENCODERS: Final = (
    *("albert", "bert", "big_bird", "camembert", "canine", "clip_text_model", "convbert"),
    *("data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "esm"),
    *("eurobert", "flaubert", "fnet", "ibert", "layoutlm", "lilt", "luke", "megatron-bert"),
    *("mobilebert", "modernbert", "mpnet", "nomic_bert", "nystromformer", "rembert", "roberta"),
    *("roberta-prelayernorm", "roc_bert", "roformer", "siglip_text_model", "splinter"),
    *("squeezebert", "xlm", "xlm-roberta", "xlnet"),
)
BOTH: Final = (
    *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "fsmt", "longt5", "m2m_100"),
    *("marian", "mbart", "mt5", "mvp", "nllb-moe", "pegasus", "plbart", "prophetnet"),
    *("switch_transformers", "t5", "umt5"),
)
VISION: Final = (
    *("beit", "clip_vision_model", "cvt", "data2vec-vision", "deit", "dinov2", "dinov3_vit"),
    *("dpt", "hiera", "ijepa", "levit", "mobilevit", "pvt", "segformer", "siglip_vision_model"),
    *("swin", "swinv2", "vit", "vit_mae", "vit_msn", "vitdet", "yolos"),
)
FAMILIES: Final = (*DECODERS, *ENCODERS, *BOTH, *VISION)

SHARPER: Final = 4.0
"""Random weights are this much larger than initialised, so that attention tells keys apart."""

LARGEST: Final = 70_000_000


def small_family(name: str) -> tuple[nn.Module, str]:
    """Build the smallest model of a family that runs, in its default backend; and say how.

    Raises:
        NotBuildableError: None runs.
    """
    import transformers

    transformers.logging.set_verbosity(50)
    cls, config_class = configs.resolve(name, configs.model_classes()[name])
    failures: list[str] = []
    candidates = sorted(configs.config_candidates(config_class), key=lambda one: one[0] != "set")
    for way, config in candidates:
        try:
            model = configs.small_model(cls, config)
            if way != "scaled /1" and _size(model) > LARGEST:
                failures.append(f"{way}: {_size(model):,} parameters")
                continue
            _sharpen(model)
            subject = ModelSubject.of(model)
            with torch.no_grad():
                model(**subject.inputs)
        except Exception as error:
            failures.append(f"{way}: {type(error).__name__}: {str(error)[:90]}")
            continue
        return model, way
    raise configs.NotBuildableError("; ".join(failures)[:500])


def swept(name: str) -> dict[str, Any]:
    """Check one family in each dtype and backend."""
    torch.set_num_threads(1)
    _torchvision_stub.install()
    warnings.simplefilter("ignore")
    try:
        model, way = small_family(name)
    except configs.NotBuildableError as error:
        return {"family": name, "built": "", "why": str(error)}
    row: dict[str, Any] = {"family": name, "class": type(model).__name__, "built": way}
    row |= {"parameters": _size(model), "runs": {}}
    for backend in ("sdpa", "eager"):
        held = _in(model, backend)
        if held is None:
            continue
        for dtype in DTYPES:
            row["runs"][f"{str(dtype)[6:]} {backend}"] = _checked(held.to(dtype))
        model.to(torch.float32)
    return row


def _in(model: nn.Module, backend: str) -> nn.Module | None:
    """The model in a backend: as it is if that is its own; built anew for eager."""
    own = getattr(model.config, "_attn_implementation", None)
    if own == backend:
        return model
    if backend != "eager" or own is None:
        return None
    try:
        return configs.in_eager(model)
    except Exception:
        return None


def _checked(model: nn.Module) -> dict[str, Any]:
    try:
        with torch.no_grad():
            model(**ModelSubject.of(model).inputs)
    except Exception as error:
        return {"outcomes": {}, "seconds": 0.0, "why": f"does not run: {str(error)[:90]}"}
    start = time.perf_counter()
    report = check_model(model, raises=False)
    outcomes = {}
    for outcome in report.outcomes:
        held: dict[str, Any] = {"status": outcome.status}
        if outcome.status in ("failed", "error"):
            held["why"] = outcome.note
            if outcome.finding is not None:
                held |= {"verdict": outcome.finding.verdict, "facts": outcome.finding.facts}
        outcomes[outcome.id] = held
    return {"outcomes": outcomes, "seconds": round(time.perf_counter() - start, 3)}


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _sharpen(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.is_floating_point():
                parameter.mul_(SHARPER)
