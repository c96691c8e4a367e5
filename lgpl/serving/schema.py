"""The bodies of requests and answers: OpenAI's fields and lgpl's own."""

from dataclasses import fields
from typing import Any, ClassVar, Literal, get_type_hints

import docstring_parser
from pydantic import BaseModel, ConfigDict, Field, create_model

from lgpl.generator.sampling import Sampling
from lgpl.serving.forms import LARGEST_SIDE

NO_EFFECT = "Taken for OpenAI's clients, and without effect."
SHOWN = "What to show; the class for a class model."


def _sampling() -> dict[str, Any]:
    """Convert the fields of `Sampling`; None stands for the server's default."""
    kinds, made = get_type_hints(Sampling), {}
    parts = docstring_parser.parse(str(Sampling.__doc__)).params
    docs = {part.arg_name: " ".join(str(part.description).split()) for part in parts}
    for field in fields(Sampling):
        kind, options = kinds[field.name], dict(field.metadata)
        if options:  # a number; larger ones make no sense
            options.setdefault("le", 100 if kind is float else 2**31)
        made[field.name] = (kind | None, Field(None, **options, description=docs[field.name]))
    return made


_Sampling: Any = create_model("_Sampling", **_sampling())


class AnyRequest(_Sampling):
    """OpenAI's fields, and lgpl's own: the seed, and those of `Sampling`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    event: ClassVar[str] = "image_edit"  # what the events of its stream are called

    prompt: str | None = Field(None, min_length=1, description=f"{SHOWN} Nothing by default.")
    model: str | None = Field(None, description="A name of `/v1/models`, unless any is accepted.")
    n: int | None = Field(None, ge=1, description="Number of images, 1 by default.")
    size: str | None = Field(
        None,
        description="`auto` is the model's own; another of the same shape, such as 1024x1024, is "
        f"scaled by Lanczos up to {LARGEST_SIDE} a side.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="`url` is a link on this server that expires. The default is `b64_json`; for "
        "models that a request calls dall-e, as at OpenAI, `url`.",
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="png by default")
    output_compression: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Quality of jpeg and webp, 100 by default. Without effect for png.",
    )
    background: Literal["auto", "opaque"] | None = Field(
        None, description=f"Every image is opaque. {NO_EFFECT}"
    )
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = Field(
        None, description=NO_EFFECT
    )
    style: Literal["vivid", "natural"] | None = Field(None, description=NO_EFFECT)
    moderation: Literal["auto", "low"] | None = Field(None, description=NO_EFFECT)
    user: str | None = Field(None, description=NO_EFFECT)
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=64, description="Previews in a stream: at most one a row of codes."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Image i is drawn from seed + i; random by default."
    )


class ImagesRequest(AnyRequest):
    """Of a new image."""

    event: ClassVar[str] = "image_generation"
    prompt: str = Field(min_length=1, description=SHOWN)


class EditsRequest(AnyRequest):
    """Of an image whose part under a mask is drawn anew; a form, with files beside."""

    prompt: str = Field(min_length=1, description=f"{SHOWN} Of the whole image.")
    input_fidelity: Literal["low", "high"] | None = Field(None, description=NO_EFFECT)


class VariationsRequest(AnyRequest):
    """Of an image half of whose codes are drawn anew; a form, with a file beside."""


class ImageObject(BaseModel):
    """Either the file in Base64 or a link to it."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Usage(BaseModel):
    """Counts positions of the generator's sequence."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class ImagesResponse(BaseModel):
    created: int
    data: list[ImageObject]
    size: str = Field(description="Of the images here.")
    drawn_size: str = Field(description="The model's own, before it was scaled to `size`.")
    output_format: Literal["png", "jpeg", "webp"]
    quality: str
    background: Literal["opaque"] = "opaque"
    usage: Usage
