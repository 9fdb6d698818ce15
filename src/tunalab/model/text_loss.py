"""Cross-entropy of the labelled tokens, without ever holding the logits of all of them.

At full scale a row's logits (labels x vocabulary in float32, with their gradients) would be the largest tensors of a step. Beyond
CHUNK labels they are made, used and forgotten a chunk at a time, and made once more in the backward pass.

Shapes: K labelled tokens, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Labels whose logits are alive at a time. Under autocast the chunks' gradients of the table are added up in bfloat16, which rounds
# more the more there are: 0.24% with one, 0.43% with eight (a long row of text).
CHUNK = 2048


def text_loss(table: nn.Linear, h_KD: Tensor, label_K: Tensor, chunk: int = CHUNK) -> Tensor:
    """Nats, summed over labels. ``table``: the decoder's output layer, D to V."""
    if len(label_K) <= chunk:
        return _summed(table, h_KD, label_K)
    sums = [
        checkpoint(_summed, table, h, label, use_reentrant=False, preserve_rng_state=False)
        for h, label in zip(h_KD.split(chunk), label_K.split(chunk), strict=True)
    ]
    return torch.stack(sums).sum()


def _summed(table: nn.Linear, h_KD: Tensor, label_K: Tensor) -> Tensor:
    return F.cross_entropy(table(h_KD).float(), label_K, reduction="sum")
