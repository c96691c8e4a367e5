"""What vLLM needs to know of the model before it builds it."""

from typing import Any

from transformers import PretrainedConfig
from vllm.config import ModelConfig, VllmConfig

from lgpl.checkpoints.files import MODEL_TYPE
from lgpl.errors import UserError
from lgpl.serving.vllm.client import outline

# Supported by vLLM's attention kernels for CPUs, and all of them by those for GPUs.
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)


def padded_head(size: int) -> int:
    """The smallest head size of vLLM's kernels that holds one of this size."""
    if size > HEAD_SIZES[-1]:
        raise UserError(f"size: the head size must be <= {HEAD_SIZES[-1]} for vLLM, got {size}")
    return next(padded for padded in HEAD_SIZES if padded >= size)


class LlamaGenConfig(PretrainedConfig):
    """`config.json` of an exported generator in vLLM's terms: both branches side by side."""

    model_type = MODEL_TYPE

    def __init__(self, config: dict[str, Any] | None = None, **rest: Any) -> None:
        if config is not None:
            model = outline(config)
            self.codes, self.code_count = model.codebook_size, model.layout.codes
            self.has_table = model.condition.tokens > 0
            tokens = model.codebook_size + model.condition.tokens
            self.vocab_size = max(2 * model.codebook_size, tokens)
            self.hidden_size = 2 * model.dim
            self.num_hidden_layers = len(model.layers)
            self.num_attention_heads = self.num_key_value_heads = 2 * model.heads
            self.head_dim = padded_head(model.dim // model.heads)
            self.max_position_embeddings = model.prefix_length + model.layout.codes
            # Positions come from the model (M-RoPE); only the first of the three channels is read.
            rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 0, 0]}
            self.rope_parameters = rope
        super().__init__(**rest)
        self.config = config


class Settings:
    """Completes vLLM's settings, so that users give only the folder."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        parallel = vllm_config.parallel_config
        tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
        if max(tensor, pipeline) > 1:
            raise UserError(
                "tensor_parallel_size and pipeline_parallel_size must be 1, got "
                f"{tensor} and {pipeline}; run one engine per device"
            )
        model = vllm_config.model_config
        model.skip_tokenizer_init = True  # prompts are no text
        model.enable_prompt_embeds = not model.hf_config.has_table
        guidance = "lgpl.serving.vllm.guidance:Guidance"
        model.logits_processors = [guidance, *(model.logits_processors or [])]

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Required by vLLM; `LlamaGenConfig` has all that is needed."""
