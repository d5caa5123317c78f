"""Where the model runs: CUDA is used where it is there and never assumed."""


def choose_device(device: str = "auto") -> str:
    """ "auto" is cuda if there is one, else cpu. Raises ValueError for a device that this machine lacks."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; expected auto, cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: no CUDA device here; `--device cpu` or `--device auto` works")
    return device
