"""Networks: a backbone, attention inside blocks and after stages, a head, and their published weights."""

from fieldmark.models.attention import Attention, Gate, Replace, is_added
from fieldmark.models.backbone import Backbone
from fieldmark.models.bilinear import Bilinear, SelfProduct
from fieldmark.models.builder import build, rebuild
from fieldmark.models.gates import CBAM, ECA, ELA, GCT, SE, CoordinateAttention, Mask
from fieldmark.models.heads import AttentionPool, AuxiliaryHead, ClassicHead, GeM, Head, LinearHead, MultiStage
from fieldmark.models.network import Network, NetworkSpec, Preprocessing
from fieldmark.models.zoo import VARIANTS

__all__ = [
    "CBAM",
    "ECA",
    "ELA",
    "GCT",
    "SE",
    "VARIANTS",
    "Attention",
    "AttentionPool",
    "AuxiliaryHead",
    "Backbone",
    "Bilinear",
    "ClassicHead",
    "CoordinateAttention",
    "Gate",
    "GeM",
    "Head",
    "LinearHead",
    "Mask",
    "MultiStage",
    "Network",
    "NetworkSpec",
    "Preprocessing",
    "Replace",
    "SelfProduct",
    "build",
    "is_added",
    "rebuild",
]
