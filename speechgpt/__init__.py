"""SpeechGPT discrete-unit toolkit: language models that hear and speak.

Names are exported lazily, so that `import speechgpt.data` does not import torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "SpeechGPT": "speechgpt.pipeline",
    "Reply": "speechgpt.events",
    "HeardText": "speechgpt.events",
    "AnswerText": "speechgpt.events",
    "Sound": "speechgpt.events",
}

__all__ = ["AnswerText", "HeardText", "Reply", "Sound", "SpeechGPT", "__version__"]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'speechgpt' has no attribute {name!r}")
