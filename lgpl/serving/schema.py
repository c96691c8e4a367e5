"""What goes over the wire: OpenAI's requests and answers, and lgpl's own fields."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, field_validator


class ImagesRequest(BaseModel):
    """OpenAI's fields, and behind them lgpl's own."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: StrictStr = Field(min_length=1, description="What to show; of a class model the class.")
    model: StrictStr | None = None
    n: StrictInt = Field(1, ge=1, description="Number of pictures.")
    size: StrictStr | None = Field(None, description="`auto`, or the model's own, as 256x256.")
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    user: StrictStr | None = None
    stream: StrictBool | None = Field(None, description="Answer with server-sent events.")
    partial_images: StrictInt | None = Field(
        None,
        ge=0,
        le=64,
        description="Pictures shown before the whole one, of a stream: one a row of codes at most.",
    )
    seed: StrictInt | None = Field(
        None, ge=0, lt=2**63, description="Picture i is drawn from seed + i; random by default."
    )
    guidance: float | None = Field(None, ge=0, le=100, strict=True)
    guidance_schedule: Literal["constant", "linear", "cosine", "power-cosine"] | None = Field(
        None, description="How the scale rises from 1 at the first code to `guidance` at the last."
    )
    guidance_power: float | None = Field(
        None, gt=0, le=100, strict=True, description="Of power-cosine: above 1 keeps it low longer."
    )
    guidance_start: StrictInt | None = Field(
        None, ge=0, le=2**31, description="Codes before guidance sets in."
    )
    guidance_steps: StrictInt | None = Field(
        None, ge=0, le=2**31, description="Codes after which guidance ends."
    )
    temperature: float | None = Field(None, ge=0, le=100, strict=True)
    top_k: StrictInt | None = Field(None, ge=0, le=2**31)
    top_p: float | None = Field(None, gt=0, le=1, strict=True)

    @field_validator("prompt")
    @classmethod
    def _is_text(cls, prompt: str) -> str:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half of a surrogate pair, which is no text") from error
        return prompt


class Image(BaseModel):
    b64_json: str
    seed: int


class Usage(BaseModel):
    """In positions of the generator's sequence."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class Images(BaseModel):
    created: int
    data: list[Image]
    size: str
    output_format: Literal["png"] = "png"
    usage: Usage
