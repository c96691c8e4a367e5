"""Requests that come with images: forms, as OpenAI's edits and variations send them."""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData

from lgpl.serving.schema import AnyRequest

MOST_FILES, MOST_FIELDS = 32, 64  # of a form; OpenAI's newest models take 16 images
Asked = TypeVar("Asked", bound=AnyRequest)


class Files(NamedTuple):
    """What a form's images are read from, while the form is open."""

    image: BinaryIO
    mask: BinaryIO | None


def read(form: FormData, kind: type[Asked]) -> tuple[Asked, Files]:
    """A request and its files; raises a RequestValidationError that names the field."""
    files: dict[str, list[BinaryIO]] = {name: [] for name in kind.files}
    fields: dict[str, str] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")  # as clients write lists
        if isinstance(value, str):
            if name in files:
                raise _wrong(name, "a file is needed", value)
            fields[key] = value
        elif name in files:
            files[name].append(value.file)
        else:
            raise _wrong(
                key, f"{'text' if key in kind.model_fields else 'no file'} is needed", "a file"
            )
    for name, found in files.items():
        if len(found) > 1 or (name == "image" and not found):
            raise _wrong(name, "one file is needed", f"{len(found)} files")
    try:
        body = kind.model_validate_strings(fields)
    except ValidationError as error:
        wrong: list[Any] = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(wrong) from error
    return body, Files(files["image"][0], next(iter(files.get("mask", [])), None))


def form_schema(kind: type[AnyRequest]) -> dict[str, Any]:
    """The description of a request's body in OpenAPI, with its files."""
    schema = kind.model_json_schema()
    file = {"type": "string", "format": "binary"}
    # A form has no null: a field is left out.
    fields = {k: {**v, **v.get("anyOf", [{}])[0]} for k, v in schema["properties"].items()}
    for field in fields.values():
        field.pop("anyOf", None)
        field.pop("default", None)
    schema["properties"] = fields | dict.fromkeys(kind.files, file)
    schema["required"] = [kind.files[0], *schema.get("required", [])]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _wrong(field: str, reason: str, got: str) -> RequestValidationError:
    error = {"type": "invalid_value", "loc": ("body", field), "msg": reason, "input": got}
    return RequestValidationError([error])
