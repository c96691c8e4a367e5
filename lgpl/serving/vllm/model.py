"""lgpl's Transformer on vLLM's paged cache; `lgpl.serving.vllm` describes the design."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention as PagedCache

from lgpl.checkpoints import check_weights
from lgpl.generator.blocks import Attention, Block, rotary_table, rotate
from lgpl.serving.vllm.client import outline
from lgpl.serving.vllm.settings import padded_head


class PagedAttention(Attention):
    """Attention of both branches, [2, N, dim], as the heads of one sequence."""

    def __init__(
        self, dim: int, heads: int, qk_norm: bool, vllm_config: VllmConfig, prefix: str
    ) -> None:
        with torch.device("meta"):
            super().__init__(dim, heads, 0.0, qk_norm)
        self.head_size = dim // heads
        self.padding = padded_head(self.head_size) - self.head_size
        size, scale = self.head_size + self.padding, self.head_size**-0.5
        cache = vllm_config.cache_config
        self.paged = PagedCache(2 * heads, size, scale, cache_config=cache, prefix=prefix)

    def forward(self, x: Tensor, rope: Tensor, *_: Any) -> Tensor:
        n, dim = x.shape[1:]
        heads = self.wqkv(x).view(2, n, 3 * self.heads, self.head_size)
        qk, v = heads.split((2 * self.heads, self.heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.chunk(2, dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        q, k = rotate(qk, rope).chunk(2, dim=2)  # [2, N, H, D]
        padded = (F.pad(t, (0, self.padding)) for t in (q, k, v))
        q, k, v = (t.transpose(0, 1).reshape(n, -1) for t in padded)  # [N, 2 * H * padded D]
        x = self.paged(q, k, v).view(n, 2, self.heads, -1)[..., : self.head_size]
        return self.wo(x.transpose(0, 1).reshape(2, n, dim))


@support_torch_compile(dynamic_arg_dims=dict(input_ids=0, positions=-1, inputs_embeds=0))
class Body(nn.Module):
    """Everything between the tokens and the head's logits."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        # On the meta device: `load_weights` assigns the weights.
        model = self.transformer = outline(vllm_config.model_config.hf_config.config)
        head = model.dim // model.heads
        table = rotary_table(model.prefix_length, model.layout, head, model.prefix_rope)
        model.rope = table.to(vllm_config.device_config.device)
        for i, layer in enumerate(model.layers):
            assert isinstance(layer, Block)
            layer.attention = PagedAttention(
                *(model.dim, model.heads, layer.attention.q_norm is not None, vllm_config),
                f"{prefix}.layers.{i}.attention",
            )
        self.eval().requires_grad_(False)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Both branches [N, 2 * dim] of token ids [N]: codes, then classes."""
        model = self.transformer
        # Clamped: a wrong id of one request must not end the engine.
        x = model.tok_embeddings(input_ids.clamp(0, model.codebook_size - 1)).repeat(1, 2)
        if (condition := model.condition).tokens:
            row = (input_ids - model.codebook_size).clamp(0, condition.tokens)
            inputs = condition.of_tokens(row)
            both = [condition(i).embeddings for i in (inputs, condition.null(inputs))]
            is_class = (input_ids >= model.codebook_size)[:, None]
            x = torch.where(is_class, torch.cat(both, dim=-1).squeeze(1), x)
        return x

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, inputs_embeds: Tensor | None
    ) -> Tensor:
        """Hidden states [N, 2 * dim] of N positions [3, N] of any number of sequences."""
        model, x = self.transformer, inputs_embeds
        if x is None:
            assert input_ids is not None
            x = self.embed_input_ids(input_ids)
        x = x.view(-1, 2, model.dim).transpose(0, 1)
        # Clamped: a request may ask for more codes than an image has.
        place = positions[0].clamp(max=len(model.rope) - 1)
        x, rope = model.toward(x, place), model.rope[place]
        for layer in model.layers:
            x = layer(x, rope)
        return model.norm(x).transpose(0, 1).flatten(1)


class LlamaGen(nn.Module):
    """A generator with guidance behind vLLM's model interface."""

    supports_mrope = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.vocabulary = vllm_config.model_config.hf_config.vocab_size
        self.body = Body(vllm_config=vllm_config, prefix=prefix)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Positions [3, L] of a prefix of L, and the shift of the codes' positions."""
        shift = self.body.transformer.prefix_length - len(input_tokens)
        return (torch.arange(len(input_tokens)) + shift).expand(3, -1), shift

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.body.embed_input_ids(input_ids)

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, inputs_embeds: Tensor | None, **_: Any
    ) -> Tensor:
        return self.body(input_ids, positions, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Logits of both branches [N, conditional | null], padded to the vocabulary."""
        model = self.body.transformer
        logits = model.output(hidden_states.view(-1, 2, model.dim)).flatten(1)
        return F.pad(logits, (0, self.vocabulary - logits.shape[1]))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        model = self.body.transformer
        expected = {name: t for name, t in model.state_dict().items() if ".paged." not in name}
        dtype, device = torch.get_default_dtype(), model.rope.device
        found = {name: tensor.to(device, dtype) for name, tensor in weights}
        check_weights(expected, found, "model.safetensors")
        model.load_state_dict(found, strict=False, assign=True)
        return {name for name, _ in self.named_parameters()}
