"""The vocoder's parts of `speechgpt bench`: speaking, streaming, training."""

from speechgpt.vocoder import benchmark_speaking, benchmark_training

parts = {**benchmark_speaking.parts, **benchmark_training.parts}
