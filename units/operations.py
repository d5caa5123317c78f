"""What HuBERT's products cost."""

from speechgpt.units.encoder import Encoder


def flops_a_second(encoder: Encoder, layer: int, frames: float = 600) -> float:
    """Of a second of audio in files of `frames` frames: two for each multiplication of the products."""
    config, positions, total, given = encoder.config, float(encoder.sample_rate), 0.0, 1
    for made, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        positions /= stride
        total += positions * given * made * kernel
        given = made
    width = config.hidden_size
    near = width * width // config.num_conv_pos_embedding_groups * config.num_conv_pos_embeddings
    a_layer = 4 * width * width + 2 * width * config.intermediate_size + 2 * frames * width
    return 2 * (total + positions * (given * width + near + layer * a_layer))
