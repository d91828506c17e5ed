"""Content-Encoding of bodies: gzip and deflate, in and out. Knows limits, not models.

Answers are compressed only for a client that asks for exactly one encoding (as tritonclient's
`response_compression_algorithm` does). The lists that HTTP libraries send by default are read as "may":
near the server, compressing numbers costs more than sending them.
"""

import asyncio
import zlib

from foretell.core.errors import InvalidInput, PayloadTooLarge
from foretell.server.http import Body, Request, Response, UnsupportedEncoding

_GZIP, _ZLIB, _RAW = 31, 15, -15
_WBITS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": _ZLIB}
_IN_LOOP_UP_TO = 64 * 2**10
_COMPRESS_FROM = 256


async def decoded(request: Request, limit: int) -> Body:
    """The request's body without its Content-Encoding.

    Raises `UnsupportedEncoding`, `InvalidInput` (corrupt data) or `PayloadTooLarge` (a bomb: more than `limit`
    bytes come out; no more than that is ever held).
    """
    encoding = request.headers[b"content-encoding"].strip().lower()
    if encoding in (b"", b"identity"):
        return request.body
    wbits = _WBITS.get(encoding)
    if wbits is None:
        raise UnsupportedEncoding(
            f'Content-Encoding "{encoding.decode("latin-1")}" is not known here; send gzip, deflate or none'
        )
    if len(request.body) <= _IN_LOOP_UP_TO:
        return inflate(request.body, wbits, limit)
    return await asyncio.to_thread(inflate, request.body, wbits, limit)


def inflate(body: Body, wbits: int, limit: int) -> bytes:
    """Decompress one stream of at most `limit` bytes. Raises as `decoded` does."""
    try:
        return _inflate(body, wbits, limit)
    except zlib.error as error:
        if wbits == _ZLIB:
            # Some clients send the bare deflate stream under the name of the zlib format.
            try:
                return _inflate(body, _RAW, limit)
            except zlib.error:
                pass
        raise InvalidInput(f"the compressed body is corrupt: {error}") from None


def _inflate(body: Body, wbits: int, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits)
    plain = stream.decompress(body, limit + 1)
    if len(plain) > limit:
        raise PayloadTooLarge(
            f"the body has over {limit} bytes when decompressed. Send fewer rows, or raise max_body_bytes"
        )
    if not stream.eof:
        raise InvalidInput("the compressed body is truncated; send it whole")
    if stream.unused_data:
        raise InvalidInput(f"{len(stream.unused_data)} stray bytes follow the compressed body")
    return plain


def compressed(request: Request, response: Response) -> Response:
    """The response, compressed if the request asks for exactly one encoding and it is worth it."""
    wanted = request.headers[b"accept-encoding"].strip().lower()
    body = response.body
    if wanted not in (b"gzip", b"deflate") or not isinstance(body, bytes) or len(body) < _COMPRESS_FROM:
        return response
    stream = zlib.compressobj(1, zlib.DEFLATED, _WBITS[wanted])
    response.body = stream.compress(body) + stream.flush()
    response.headers += b"content-encoding: %b\r\nvary: accept-encoding\r\n" % wanted
    return response
