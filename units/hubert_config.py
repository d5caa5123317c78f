"""The settings of a HuBERT as Hugging Face's config.json names them: read, checked, and written again."""

from dataclasses import asdict, dataclass, field, fields
from math import prod
from typing import TYPE_CHECKING

from speechgpt.data.files import one_line

if TYPE_CHECKING:
    from torch import Tensor

_LISTS = ("conv_dim", "conv_stride", "conv_kernel")
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
)
_KINDS = {int: int, bool: bool, str: str, float: int | float}


@dataclass
class HubertConfig:
    """Names and defaults are those of transformers' HubertConfig, HuBERT base.

    What only its heads, its training and its tokenizers use is kept, so that a folder that is read and
    written again says what it said.
    """

    vocab_size: int = 32
    hidden_size: int = 768  # D
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_layer_norm: bool = True
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = "group"  # group: over time, after the first convolution | layer: after each
    feat_extract_activation: str = "gelu"
    conv_dim: list = field(default_factory=lambda: [512] * 7)  # C
    conv_stride: list = field(default_factory=lambda: [5, 2, 2, 2, 2, 2, 2])
    conv_kernel: list = field(default_factory=lambda: [10, 3, 3, 3, 3, 2, 2])
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128  # frames that the positional convolution sees
    num_conv_pos_embedding_groups: int = 16
    conv_pos_batch_norm: bool = False
    do_stable_layer_norm: bool = False  # norms before attention and feed-forward, not after
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    other: dict = field(default_factory=dict)  # fields of the file that are none of these

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name in _LISTS:
                setattr(self, f.name, _positive(f.name, getattr(self, f.name)))
            elif not isinstance(value := getattr(self, f.name), _KINDS.get(f.type, object)):
                raise ValueError(f"{f.name} is {one_line(repr(value), 60)}, expected {f.type.__name__}")
            elif f.name in _SIZES and value < 1:
                raise ValueError(f"{f.name} is {one_line(value, 60)}, expected 1 or more")
        sizes = {name: len(getattr(self, name)) for name in _LISTS}
        if len(set(sizes.values())) > 1 or not self.conv_dim:
            found = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise ValueError(f"one entry a convolution was expected in each: {found}")
        if self.feat_extract_norm not in ("group", "layer"):
            raise ValueError(f"feat_extract_norm is {self.feat_extract_norm!r}, expected 'group' or 'layer'")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} attention heads"
            )

    @property
    def convolutions(self) -> list[tuple[int, int]]:
        """Kernel and stride of each."""
        return list(zip(self.conv_kernel, self.conv_stride, strict=True))

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return prod(self.conv_stride)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees."""
        field = 1
        for kernel, stride in reversed(self.convolutions):
            field = (field - 1) * stride + kernel
        return field

    def frames(self, samples: "int | Tensor") -> "int | Tensor":
        """Frames N of so many samples: (T - 400) // 320 + 1 with the published convolutions."""
        for kernel, stride in self.convolutions:
            samples = (samples - kernel) // stride + 1
        return samples

    @classmethod
    def names(cls) -> set[str]:
        """What an architecture may set."""
        return {f.name for f in fields(cls)} - {"other"}

    @classmethod
    def from_values(cls, values: dict) -> "HubertConfig":
        """From the content of config.json; fields that are not known here are kept as they are."""
        known = {name: value for name, value in values.items() if name in cls.names()}
        other = {n: v for n, v in values.items() if n not in known and n not in _WRITTEN}
        return cls(**known, other=other)

    def to_values(self) -> dict:
        """The content of config.json, which transformers reads too, in the order of names."""
        values = asdict(self)
        values |= values.pop("other")
        values |= {"model_type": "hubert", "num_feat_extract_layers": len(self.conv_dim)}
        return dict(sorted(values.items()))


def _positive(name: str, value: object) -> list[int]:
    if not isinstance(value, list | tuple) or not all(type(v) is int and v > 0 for v in value):
        raise ValueError(f"{name} is {one_line(repr(value), 60)}, expected a list of whole numbers above 0")
    return list(value)


_WRITTEN = ("model_type", "num_feat_extract_layers")  # by `to_values`, from the rest
