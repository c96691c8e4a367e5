"""The bodies of requests and answers: OpenAI's fields and lgpl's own."""

from dataclasses import fields
from typing import Any, Literal, get_type_hints

import docstring_parser
from pydantic import BaseModel, ConfigDict, Field, create_model

from lgpl.generator.sampling import Sampling


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


class ImagesRequest(_Sampling):
    """OpenAI's fields, and lgpl's own: the seed, and those of `Sampling`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    prompt: str = Field(min_length=1, description="What to show; the class for a class model.")
    model: str | None = None
    n: int = Field(1, ge=1, description="Number of images.")
    size: str | None = Field(None, description="`auto`, or the model's own, as 256x256.")
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    user: str | None = None
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=64, description="Previews in a stream: at most one a row of codes."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Image i is drawn from seed + i; random by default."
    )


class ImageObject(BaseModel):
    b64_json: str
    seed: int


class Usage(BaseModel):
    """Counts positions of the generator's sequence."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class ImagesResponse(BaseModel):
    created: int
    data: list[ImageObject]
    size: str
    output_format: Literal["png"] = "png"
    usage: Usage
