"""Architectures of timm with softmax attention, and models of all kinds without any."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

__all__ = ["ATTENDING", "WITHOUT"]

Made = tuple[nn.Module, dict[str, Any]]

ATTENDING_NAMES: Final = (
    # Plain transformers and their variants
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224"),
    *(
        "vit_small_patch14_reg4_dinov2",
        "vit_relpos_small_patch16_224",
        "vit_srelpos_small_patch16_224",
    ),
    *("beit_base_patch16_224", "beitv2_base_patch16_224", "eva02_tiny_patch14_224"),
    *(
        "eva_giant_patch14_224",
        "cait_xxs24_224",
        "crossvit_tiny_240",
        "pit_ti_224",
        "tnt_s_legacy_patch16_224",
    ),
    *(
        "visformer_tiny",
        "volo_d1_224",
        "xcit_nano_12_p16_224",
        "flexivit_small",
        "samvit_base_patch16_224",
    ),
    *(
        "vit_base_patch16_siglip_224",
        "vit_medium_patch16_gap_256",
        "vit_betwixt_patch16_rope_reg4_gap_256",
    ),
    *("naflexvit_base_patch16_gap", "vit_wee_patch16_reg1_gap_256", "vit_small_patch16_dinov3"),
    *(
        "vit_base_r50_s16_224",
        "vit_so150m2_patch16_reg1_gap_256",
        "vit_base_patch16_rope_mixed_224",
    ),
    # Windows, hierarchies
    *("swin_tiny_patch4_window7_224", "swin_s3_tiny_224", "swinv2_tiny_window8_256"),
    *("swinv2_cr_tiny_ns_224", "twins_pcpvt_small", "twins_svt_small", "pvt_v2_b0", "nest_tiny"),
    *("mvitv2_tiny", "hiera_tiny_224", "davit_tiny", "gcvit_xxtiny", "maxvit_tiny_tf_224"),
    *("maxxvit_rmlp_nano_rw_256", "coatnet_nano_rw_224", "coatnet_0_rw_224"),
    # Convolutions with attention
    *("convit_tiny", "levit_128s", "levit_conv_128s", "edgenext_xx_small", "mobilevit_xxs"),
    *("efficientformer_l1", "efficientformerv2_s0", "fastvit_sa12"),
    *("tiny_vit_5m_224", "botnet26t_256", "halonet26t"),
    *("lamhalobotnet50ts_256", "sebotnet33ts_256", "efficientvit_m0"),
    *("mobilenetv4_hybrid_medium", "caformer_s18", "nextvit_small", "shvit_s1"),
    "vitamin_small_224",
    "csatv2",
)

WITHOUT_NAMES: Final = (
    # Their names or papers speak of attention or tokens: linear, gated, recurrent
    *("sequencer2d_s", "coat_tiny", "mobilevitv2_050", "fastvit_t8"),
    *("repvit_m0_9", "lambda_resnet26t", "bat_resnext26ts", "efficientvit_b0"),
    *("poolformer_s12", "inception_next_atto", "mambaout_femto", "resnetv2_50d_gn"),
    *("swiftformer_xs", "starnet_s1", "ghostnetv3_050", "focalnet_tiny_srf"),
    # Convolutions and perceptrons
    *(
        "resnet18",
        "convnext_atto",
        "mixer_s32_224",
        "resmlp_12_224",
        "gmlp_ti16_224",
        "convmixer_768_32",
    ),
    *(
        "densenet121",
        "regnetx_002",
        "seresnet50",
        "senet154",
        "skresnet18",
        "resnest14d",
        "ecaresnet26t",
    ),
    *(
        "efficientnet_b0",
        "mobilenetv3_small_100",
        "ghostnet_100",
        "dpn68",
        "hardcorenas_a",
        "vgg11",
    ),
    *(
        "hrnet_w18_small",
        "tresnet_m",
        "repvgg_a0",
        "cs3darknet_s",
        "nf_regnet_b0",
        "dla34",
        "xception41",
    ),
    *("inception_v3", "rexnet_100", "gcresnext26ts", "resnet32ts", "convnextv2_atto"),
)


def _from_timm(name: str) -> Made:
    """Make an architecture at its own image size, not pretrained, two blocks a stage at most."""
    import timm

    torch.manual_seed(0)
    options: list[dict[str, Any]] = [{"depth": 2}, {}] if _plain(name) else [{}]
    for given in options:
        try:
            model: nn.Module = timm.create_model(name, **given).eval()
            break
        except (TypeError, AssertionError):
            continue
    channels, height, width = model.default_cfg["input_size"]  # type: ignore[index]
    torch.manual_seed(1)
    return model, {"x": torch.randn(1, channels, height, width)}


def _plain(name: str) -> bool:
    return name.startswith(("vit_", "deit", "beit", "eva", "flexivit", "samvit"))


def _timm(names: tuple[str, ...]) -> dict[str, Callable[[], Made]]:
    return {name: functools.partial(_from_timm, name) for name in names}


class Experts(nn.Module):
    """A mixture of experts with a softmax router."""

    def __init__(self, choose: int) -> None:
        super().__init__()
        self.choose = choose
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(self.choose)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        picked = outputs.gather(-2, chosen[..., None].expand(*chosen.shape, 16))
        return (weights[..., None, :] @ picked)[..., 0, :]


class Pooling(nn.Module):
    """Attention pooling with a learned scoring layer."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x).softmax(1).transpose(1, 2) @ x


class Linear(nn.Module):
    """Linear attention: query and key each have a softmax, there is no weight per pair."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1) @ (x.softmax(-2).transpose(1, 2) @ x)


def _plain_module(make: Callable[[], nn.Module]) -> Callable[[], Made]:
    def made() -> Made:
        torch.manual_seed(0)
        model = make().eval()
        name = "input" if isinstance(model, nn.LSTM | nn.GRU) else "x"
        return model, {name: torch.randn(2, 6, 16)}

    return made


ATTENDING: Final = _timm(ATTENDING_NAMES)
WITHOUT: Final[dict[str, Callable[[], Made]]] = {
    **_timm(WITHOUT_NAMES),
    "lstm": _plain_module(lambda: nn.LSTM(16, 16)),
    "gru": _plain_module(lambda: nn.GRU(16, 16)),
    "experts, top 1": _plain_module(lambda: Experts(1)),
    "experts, top 2": _plain_module(lambda: Experts(2)),
    "pooling": _plain_module(Pooling),
    "linear attention": _plain_module(Linear),
}
