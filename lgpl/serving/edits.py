"""Requests that come with images: forms, as OpenAI's edits and variations send them."""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from lgpl.serving.schema import AnyRequest

MOST_FILES, MOST_FIELDS = 32, 64  # of a form; OpenAI's newest models take 16 images
FILES = ("image", "mask")
Asked = TypeVar("Asked", bound=AnyRequest)


class Files(NamedTuple):
    """What a form's images are read from, while the form is open."""

    image: BinaryIO
    mask: BinaryIO | None


def read(form: FormData, kind: type[Asked]) -> tuple[Asked, Files]:
    """A request and its files; raises a RequestValidationError that names the field."""
    files: dict[str, list[BinaryIO]] = {name: [] for name in FILES}
    fields: dict[str, str] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")  # as clients write lists
        if name in FILES and isinstance(value, UploadFile):
            files[name].append(value.file)
        elif name in FILES or isinstance(value, UploadFile):
            wanted = "a file" if name in FILES else "text"
            raise _wrong(key, f"{wanted} is needed", value if isinstance(value, str) else "a file")
        else:
            fields[key] = value
    for name, found in files.items():
        if len(found) > 1 or (name == "image" and not found):
            raise _wrong(name, "one file is needed", f"{len(found)} files")
    try:
        body = kind.model_validate_strings(fields)
    except ValidationError as error:
        wrong: list[Any] = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(wrong) from error
    return body, Files(files["image"][0], next(iter(files["mask"]), None))


def form_schema(kind: type[AnyRequest], *optional: str) -> dict[str, Any]:
    """The description of a request's body in OpenAPI, with a file `image` and others."""
    schema = kind.model_json_schema()
    file = {"type": "string", "format": "binary"}
    # A form has no null: a field is left out.
    fields = {k: {**v, **v.get("anyOf", [{}])[0]} for k, v in schema["properties"].items()}
    for field in fields.values():
        field.pop("anyOf", None)
        field.pop("default", None)
    schema["properties"] = fields | dict.fromkeys(("image", *optional), file)
    schema["required"] = ["image", *schema.get("required", [])]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _wrong(field: str, reason: str, got: str) -> RequestValidationError:
    error = {"type": "invalid_value", "loc": ("body", field), "msg": reason, "input": got}
    return RequestValidationError([error])
