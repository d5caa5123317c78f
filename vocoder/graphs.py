"""CUDA graphs: a training step is thousands of small kernels, and replaying them costs no launches."""

import logging
from collections.abc import Callable

import torch

EAGER_STEPS = 4  # before the capture: cuDNN chooses kernels, optimizers make their states

logger = logging.getLogger(__name__)


class Phases:
    """A step as a list of functions without arguments or results, run one after the other.

    The functions read and write tensors that stay where they are. After `EAGER_STEPS` eager runs each is
    captured as a CUDA graph and replayed from then on. `between` holds what runs eagerly after each phase but
    the last: the place for collectives. If the capture fails, the step stays eager, with a warning.
    """

    def __init__(
        self,
        functions: list[Callable[[], None]],
        capture: bool,
        between: list[Callable[[], None]] | None = None,
        eager_steps: int = EAGER_STEPS,
    ):
        self.functions, self.between = functions, between
        self.capture = capture and torch.cuda.is_available()
        self.eager_left = eager_steps
        self.graphs: list[torch.cuda.CUDAGraph] | None = None
        self.stream = torch.cuda.Stream() if self.capture else None

    @property
    def captured(self) -> bool:
        return self.graphs is not None

    @property
    def captures_next(self) -> bool:
        """Whether the next call captures and replays for the first time."""
        return self.capture and self.graphs is None and self.eager_left <= 0

    def release(self) -> None:
        """Frees what the capture holds; the step runs eagerly if it is called again."""
        self.graphs, self.capture = None, False

    def __call__(self) -> None:
        if self.graphs is not None:
            self._run([graph.replay for graph in self.graphs])
        elif not self.capture:
            self._run(self.functions)
        elif self.eager_left > 0:
            # Warm-up on the stream that will capture, as PyTorch asks.
            self.eager_left -= 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self._run(self.functions)
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            self._capture()
            self()

    def _run(self, functions: list[Callable[[], None]]) -> None:
        for number, function in enumerate(functions):
            function()
            if self.between and number < len(functions) - 1:
                self.between[number]()

    def _capture(self) -> None:
        """Captures without executing: the weights do not move until the replay."""
        torch.cuda.synchronize()
        graphs = [torch.cuda.CUDAGraph() for _ in self.functions]
        pool = torch.cuda.graph_pool_handle()
        try:
            for graph, function in zip(graphs, self.functions, strict=True):
                with torch.cuda.graph(graph, pool=pool, stream=self.stream):
                    function()
        except RuntimeError as error:
            self.capture = False
            torch.cuda.synchronize()
            reason = " ".join(str(error).split())[:300]
            logger.warning("CUDA graph capture failed, training goes on with eager steps: %s", reason)
            return
        self.graphs = graphs
