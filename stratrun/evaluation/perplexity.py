"""How surprised a language model is."""

import torch
from torch import Tensor
from torch.nn import functional

from stratrun.errors import MetricError
from stratrun.evaluation.classes import check_shapes
from stratrun.evaluation.metric import Metric
from stratrun.registry import METRICS


@METRICS.register_module()
class Perplexity(Metric):
    """``exp`` of the mean negative log likelihood (natural logarithm) of all tokens that count.

    Tokens of all samples weigh the same, however long each sample is.

    Args:
        class_dim: Where the logits have the vocabulary; the last by default.
        ignore_index: Targets of this value are not counted (padding).
    """

    total: Tensor
    tokens: Tensor

    def __init__(self, *, class_dim: int = -1, ignore_index: int = -100, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.class_dim = class_dim
        self.ignore_index = ignore_index
        self.add_state("total", torch.zeros((), dtype=torch.float64))
        self.add_state("tokens", torch.zeros((), dtype=torch.int64))

    def update(self, preds: Tensor, target: Tensor) -> None:
        check_shapes("Perplexity", preds, target, self.class_dim, labels=False)
        logits = preds.movedim(self.class_dim, -1).flatten(0, -2).float()
        right = target.flatten().long()
        each = functional.cross_entropy(logits, right, ignore_index=self.ignore_index, reduction="none")
        self.total += each.to(self.total.dtype).sum()
        self.tokens += (right != self.ignore_index).sum()

    def compute(self) -> dict[str, float]:
        tokens = int(self.tokens)
        if tokens == 0:
            raise MetricError(
                f"Perplexity counted no token: every target is ignore_index={self.ignore_index}"
            )
        return {"perplexity": float(torch.exp(self.total / tokens))}
