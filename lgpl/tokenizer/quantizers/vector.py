"""Vector quantization with a learned codebook."""

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.errors import UserError
from lgpl.tokenizer.quantizers import base

TEMPERATURE = 0.01  # of the soft choices in the entropy term, in squared distances


class VectorQuantizer(base.Quantizer):
    """Nearest neighbour in a learned codebook (arXiv 1711.00937), both sides l2-normalised as in
    LlamaGen (arXiv 2406.06525, section 2.2, after arXiv 2110.04627).

    loss = |z_q - sg z|^2 + beta |z - sg z_q|^2 + entropy_weight * (entropy per sample - entropy of
    the mean), means over all elements.

    Args:
        codebook_size: number of code vectors.
        dim: width of a code vector.
        beta: weight of the commitment term.
        l2_norm: compare directions instead of points.
        entropy_weight: weight of the entropy term (arXiv 2310.05737, section 3); 0 leaves it out.
        kmeans_iterations: k-means steps on the first training batches instead of the uniform start;
            0 leaves the codebook as it was initialised.
        revive_after: a code unused for so many training batches takes the place of a random feature
            of the current batch; 0 never.
        gradient: how it comes from a code vector to the feature: unchanged, or turned and scaled as
            the one is to the other (`rotation`, arXiv 2410.06424).
    """

    def __init__(
        self,
        codebook_size: int = 16384,
        dim: int = 8,
        beta: float = 0.25,
        l2_norm: bool = True,
        entropy_weight: float = 0.0,
        kmeans_iterations: int = 0,
        revive_after: int = 0,
        gradient: Literal["straight-through", "rotation"] = "straight-through",
    ) -> None:
        super().__init__()
        self.codebook_size, self.dim = codebook_size, dim
        self.beta, self.l2_norm, self.entropy_weight = beta, l2_norm, entropy_weight
        self.kmeans_iterations, self.revive_after = kmeans_iterations, revive_after
        self.gradient = gradient
        self.codebook = nn.Embedding(codebook_size, dim)
        nn.init.uniform_(self.codebook.weight, -1.0 / codebook_size, 1.0 / codebook_size)
        with torch.no_grad():
            self.codebook.weight.copy_(self.vectors())
        # Batches since each code was last used; negative: k-means has still to be run.
        self.idle = nn.Buffer(torch.full((codebook_size,), -1 if kmeans_iterations else 0))

    def vectors(self) -> Tensor:
        """The codebook as it is compared and looked up, [K, D], float32."""
        weight = self.codebook.weight.float()
        return F.normalize(weight, dim=-1) if self.l2_norm else weight

    def forward(self, z: Tensor) -> base.Quantized:
        with torch.autocast(z.device.type, enabled=False):  # distances need float32
            flat = self._flatten(z)  # [N, D]
            vectors = self.vectors()
            codes = self._nearest(flat.detach(), vectors.detach())
            chosen = F.embedding(codes, vectors)
            terms = {
                "codebook": F.mse_loss(chosen, flat.detach()),
                "commitment": self.beta * F.mse_loss(flat, chosen.detach()),
            }
            if self.entropy_weight:
                log_p = F.log_softmax(2.0 * flat @ vectors.T / TEMPERATURE, dim=-1)
                terms["entropy"] = self.entropy_weight * base.entropy_loss(log_p)
            source = turn_onto(flat, chosen.detach()) if self.gradient == "rotation" else flat
            passed = base.straight_through(chosen, source)
        b, d, h, w = z.shape
        z_q = passed.view(b, h, w, d).permute(0, 3, 1, 2)
        return base.Quantized.of_terms(z_q, codes.view(b, h, w), terms)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.vectors()).permute(0, 3, 1, 2)

    @torch.no_grad()
    def observe(self, z: Tensor, codes: Tensor) -> dict[str, Any]:
        """k-means on the first call, then the revival of dead codes; equal on all ranks."""
        if self.kmeans_iterations and (self.idle < 0).all():
            self.codebook.weight.copy_(self._kmeans(_gather(self._flatten(z))))
            self.idle.zero_()
            return {}
        if not self.revive_after:
            return {}
        used = torch.bincount(_gather(codes.flatten()), minlength=self.codebook_size) > 0
        self.idle.add_(1).masked_fill_(used, 0)
        dead = (self.idle >= self.revive_after).nonzero().flatten()
        if len(dead):
            flat = _gather(self._flatten(z))
            picked = _same_everywhere(torch.randint(len(flat), (len(dead),), device=flat.device))
            self.codebook.weight[dead] = flat[picked]
            self.idle[dead] = 0
        return {"revived": float(len(dead))}

    def _flatten(self, z: Tensor) -> Tensor:
        flat = base.channels_last(z).flatten(0, 2)
        return F.normalize(flat, dim=-1) if self.l2_norm else flat

    def _nearest(self, flat: Tensor, vectors: Tensor) -> Tensor:
        # |a - b|^2 less the part that is the same for every code
        scores = torch.addmm(vectors.pow(2).sum(-1), flat, vectors.T, alpha=-2.0)
        return scores.argmin(dim=-1)

    def _kmeans(self, flat: Tensor) -> Tensor:
        """Lloyd's algorithm from random features; an empty cluster is drawn anew."""
        if len(flat) < self.codebook_size:
            raise UserError(
                f"k-means needs codebook_size = {self.codebook_size} features in a batch, but the "
                f"first holds {len(flat)}: enlarge batch_size or set kmeans_iterations to 0."
            )
        shuffled = _same_everywhere(torch.randperm(len(flat), device=flat.device))
        centres = flat[shuffled[: self.codebook_size]]
        for _ in range(self.kmeans_iterations):
            nearest = self._nearest(flat, centres)
            counts = torch.bincount(nearest, minlength=self.codebook_size)
            sums = torch.zeros_like(centres).index_add_(0, nearest, flat)
            means = sums / counts.clamp(min=1).unsqueeze(-1)
            drawn = torch.randint(len(flat), counts.shape, device=flat.device)
            centres = torch.where((counts > 0).unsqueeze(-1), means, flat[_same_everywhere(drawn)])
            if self.l2_norm:
                centres = F.normalize(centres, dim=-1)
        return centres


def turn_onto(e: Tensor, q: Tensor) -> Tensor:
    """Features e [N, D] turned and scaled onto code vectors q, as a constant linear map: a gradient
    at q reaches e with the angle to e that it has to q, times |q| / |e| (arXiv 2410.06424, 4.2)."""
    with torch.no_grad():
        from_, to = F.normalize(e, dim=-1), F.normalize(q, dim=-1)
        half = F.normalize(from_ + to, dim=-1)  # the mirror of the two Householder reflections
        scale = q.norm(dim=-1, keepdim=True) / e.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    along_half = (e * half).sum(-1, keepdim=True)
    along_from = (e * from_).sum(-1, keepdim=True)
    return scale * (e - 2 * along_half * half + 2 * along_from * to)


def _gather(x: Tensor) -> Tensor:
    """Rows of all ranks, in the order of the ranks; every rank has the same number."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def _same_everywhere(x: Tensor) -> Tensor:
    """Rank 0's draw on every rank."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(x, src=0)
    return x
