"""OpenAI's files: /v1/files, what clients upload and what is made for them. Knows no disk, nor what they are for."""

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
import python_multipart
from msgspec import Meta
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from foretell.core.errors import InvalidInput, NotFound, did_you_mean
from foretell.server.http import BINARY, Body, Request, Response, json_response
from foretell.server.router import Route

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
"""What OpenAI lets clients upload files for. Here only those for batches are of use."""

STATUSES = (400, 404, 405, 413, 415, 500, 503)
_MOST = 10_000
_T = TypeVar("_T")


class FileDocument(msgspec.Struct):
    """A form, multipart/form-data. purpose: batch. file: JSON lines, up to the server's `max_body_bytes`."""

    purpose: str
    file: Annotated[str, Meta(extra_json_schema={"format": "binary"})]


class FileObject(msgspec.Struct):
    """`created_at` is in Unix seconds."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    object: str = "file"
    status: str = "processed"


class FileList(msgspec.Struct):
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class FileDeleted(msgspec.Struct):
    id: str
    object: str = "file"
    deleted: bool = True


class FileStore(Protocol):
    """Keeps files. All but `add` and `all` raise `NotFound`."""

    async def add(self, filename: str, purpose: str, content: bytes) -> FileObject: ...
    async def all(self) -> list[FileObject]:
        """Newest first."""

    async def get(self, name: str) -> FileObject: ...
    async def content(self, name: str) -> AsyncIterator[bytes]: ...
    async def remove(self, name: str) -> None: ...


class NoFiles:
    """The null twin: nothing is kept."""

    async def add(self, filename: str, purpose: str, content: bytes) -> FileObject:
        raise NotFound("this server keeps no files: its store is remote. Name a folder as [store] files")

    async def all(self) -> list[FileObject]:
        return []

    async def get(self, name: str) -> FileObject:
        raise NotFound(f'no file "{name}"; this server keeps none')

    async def content(self, name: str) -> AsyncIterator[bytes]:
        raise NotFound(f'no file "{name}"; this server keeps none')

    async def remove(self, name: str) -> None:
        raise NotFound(f'no file "{name}"; this server keeps none')


class FilesApi:
    """The handlers, over a store of files."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def create(self, request: Request) -> Response:
        fields, files = await asyncio.to_thread(read_form, request.header(b"content-type"), request.body)
        purpose = fields.get("purpose", "")
        if "file" not in files:
            raise InvalidInput("the form has no file in its field file; send one as multipart/form-data (at $.file)")
        if purpose not in PURPOSES:
            raise InvalidInput(f'purpose is "{purpose}" (at $.purpose). {did_you_mean(purpose, PURPOSES)}')
        name, content = files["file"]
        if not content:
            raise InvalidInput(f"{name} is empty (at $.file)")
        return json_response(await self._files.add(name, purpose, content))

    async def page(self, request: Request) -> Response:
        found = await self._files.all()
        purpose = request.query.get("purpose", "")
        found = [each for each in found if purpose in ("", each.purpose)]
        if request.query.get("order") == "asc":
            found.reverse()
        data, more = one_page(found, request.query, [each.id for each in found], _MOST, _MOST)
        return json_response(FileList(data, data[0].id if data else None, data[-1].id if data else None, more))

    async def get(self, request: Request) -> Response:
        return json_response(await self._files.get(request.params["file"]))

    async def content(self, request: Request) -> Response:
        return Response(await self._files.content(request.params["file"]), 200, BINARY)

    async def delete(self, request: Request) -> Response:
        name = request.params["file"]
        await self._files.remove(name)
        return json_response(FileDeleted(name))

    def routes(self) -> list[Route]:
        tag = "OpenAI"
        return [
            Route("POST", "/v1/files", self.create, "Upload a file", tag, FileDocument, FileObject, STATUSES),
            Route("GET", "/v1/files", self.page, "Files", tag, None, FileList, (400, 500)),
            Route("GET", "/v1/files/{file}", self.get, "One file", tag, None, FileObject, (404, 500)),
            Route("GET", "/v1/files/{file}/content", self.content, "What is in it", tag, None, None, (404, 500)),
            Route("DELETE", "/v1/files/{file}", self.delete, "Delete it", tag, None, FileDeleted, (404, 500)),
        ]  # fmt: skip


def one_page(
    found: Sequence[_T], query: dict[str, str], ids: Sequence[str], usual: int, most: int
) -> tuple[list[_T], bool]:
    """What follows `after`, at most `limit` of it, and whether there is more. Raises `InvalidInput`."""
    start = 0
    if after := query.get("after"):
        if after not in ids:
            raise InvalidInput(f'after is "{after}", which is not in this list; give the id of its last entry')
        start = ids.index(after) + 1
    told = query.get("limit") or str(usual)
    if not (told.isascii() and told.isdigit() and 1 <= int(told[:9]) <= most):
        raise InvalidInput(f'limit is "{told}"; give a number from 1 to {most}')
    end = start + int(told)
    return list(found[start:end]), end < len(found)


def read_form(content_type: bytes, body: Body) -> tuple[dict[str, str], dict[str, tuple[str, bytes]]]:
    """Fields and files (name, contents) of a multipart form. Raises `InvalidInput`."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidInput(f'content-type is "{content_type.decode("latin-1")}"; send a form, multipart/form-data')
    fields: dict[str, str] = {}
    files: dict[str, tuple[str, bytes]] = {}

    def on_field(field: Any) -> None:
        fields[_text(field.field_name)] = _text(field.value)

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        files[_text(file.field_name)] = (_text(file.file_name) or "upload", file.file_object.read())
        file.close()

    headers = {"Content-Type": content_type, "Content-Length": str(len(body)).encode()}
    try:
        python_multipart.parse_form(headers, io.BytesIO(body), on_field, on_file)
    except FormParserError as error:
        raise InvalidInput(f"the form is malformed: {error}") from None
    return fields, files


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace")
