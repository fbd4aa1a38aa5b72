"""Images out of a request, within the limits: a form of files, or one image as the whole body. All in memory, nothing on the disk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from bigtransfer.limits import limits
from bigtransfer.serve.refusals import Refusal

_MOST_FIELDS = 16
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Upload:
    """One image file of a request."""

    name: str
    """As the client calls it: shown again, never opened."""
    data: bytes
    error: str | None = None
    """Why it is not looked at."""


async def read(request: Request, *, at_most: int, take: Callable[[int], None]) -> list[Upload]:
    """The images of a request, one or more.

    at_most: how many. take: called with numbers of bytes before they are kept; raises a Refusal if there is no room for them. Refusal,
    too, for what is not images or too much of them; of several images one that is too large is an `Upload` with an error.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "encoding", "Send the images as they are: compressed requests are not unpacked.")
    if kind == "multipart/form-data":
        files = await _files(request, at_most, take)
    elif kind.startswith(("multipart/", "text/")) or "json" in kind or "xml" in kind:
        raise Refusal(
            415,
            "content_type",
            f"Send an image's bytes, or multipart/form-data with a file for each image, not {kind[:80]}.",
        )
    else:  # whatever it is called: what the bytes are decides
        files = [("image", b"".join([chunk async for chunk in _chunks(request, take)]))]
        if not files[0][1]:
            raise Refusal(400, "no_image", "The request has no image: its body is empty.")
    return [_checked(name, data) for name, data in files]


def _checked(name: str, data: bytes) -> Upload:
    name = name[:_LONGEST_NAME] or "image"
    if len(data) > limits().image_bytes:
        return Upload(name, b"", f"it has more than {limits().image_bytes:,} bytes")
    if not data:
        return Upload(name, b"", "it is empty: no bytes were sent")
    return Upload(name, data)


async def _files(request: Request, at_most: int, take: Callable[[int], None]) -> list[tuple[str, bytes]]:
    parser = _Parser(request.headers, _chunks(request, take), max_files=at_most, max_fields=_MOST_FIELDS)
    parser.spool_max_size = limits().request_bytes + 1  # never a file on the disk
    try:
        form: FormData = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Refusal(
                413, "too_many_images", f"One request may bring {at_most} image{'s' * (at_most > 1)} at most."
            ) from error
        raise Refusal(400, "bad_form", f"The form cannot be read: {error.message}") from error
    try:
        if not parser.complete:
            raise Refusal(400, "bad_form", "The form is cut off: its last boundary is missing.")
        files = []
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise Refusal(
                    400,
                    "bad_form",
                    f"The field {field[:80]!r} is not a file. Options go into the address, as in /predict?top_k=3.",
                )
            files.append((value.filename or "", await value.read()))
        if not files:
            raise Refusal(400, "no_image", "The form has no file.")
        return files
    finally:
        await form.close()


class _Parser(MultiPartParser):
    """Starlette's, which takes a form that is cut off between or within files for one that holds the files before."""

    complete = False

    def on_end(self) -> None:
        super().on_end()
        self.complete = True


async def _chunks(request: Request, take: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Refusal as soon as it is, or says it is, too large."""
    most = limits().request_bytes
    refusal = Refusal(413, "too_large", f"One request may have {most:,} bytes at most.")
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > most:
        raise refusal
    total = 0
    try:
        async for chunk in request.stream():
            total += len(chunk)
            if total > most:
                raise refusal
            take(len(chunk))
            yield chunk
    except ClientDisconnect as error:
        raise Refusal(499, "left", "The client left before its request was whole.") from error
