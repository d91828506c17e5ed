"""The route table: which handler answers a method and path. Knows paths, not what handlers do."""

from collections.abc import Iterable
from urllib.parse import unquote

import msgspec

from foretell.core.errors import NotFound, did_you_mean
from foretell.server.http import Handler, MethodNotAllowed, Request

_REMEMBERED = 1024


class Route(msgspec.Struct, frozen=True):
    """One line of the route table; `template` has {name} for a whole segment. The rest is for the document:
    `takes` and `gives` are the types of the JSON bodies, `statuses` the errors it is known to answer.
    """

    method: str
    template: str
    handler: Handler
    summary: str = ""
    tag: str = ""
    takes: object = None
    gives: object = None
    statuses: tuple[int, ...] = ()


class Router:
    """Finds a request's route: a path seen before by one lookup, others segment by segment."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._split = [(r.template.strip("/").split("/"), r) for r in self.routes]
        self._seen: dict[tuple[bytes, bytes], tuple[Handler, dict[str, str]]] = {}

    def find(self, request: Request) -> Handler:
        """The handler; sets `request.params`. Raises `NotFound` or `MethodNotAllowed`."""
        key = (request.method, request.target)
        hit = self._seen.get(key)
        if hit is None:
            hit = self._search(request)
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[key] = hit
        handler, request.params = hit
        return handler

    def _search(self, request: Request) -> tuple[Handler, dict[str, str]]:
        method = "GET" if request.method == b"HEAD" else request.method.decode("latin-1")
        raw = request.raw_path.decode("latin-1")
        parts = [unquote(p, errors="replace") for p in raw.strip("/").split("/")]
        allowed: list[str] = []
        for pattern, route in self._split:
            params = _match(pattern, parts)
            if params is None:
                continue
            if route.method == method:
                return route.handler, params
            allowed.append(route.method)
        if allowed:
            listed = ", ".join(sorted(set(allowed) | ({"HEAD"} if "GET" in allowed else set())))
            raise MethodNotAllowed(f"{request.path} takes {listed}, not {method}", listed)
        near = did_you_mean(request.path, {r.template for r in self.routes})
        raise NotFound(f"no route {method} {request.path}. {near}")


def _match(pattern: list[str], parts: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(parts):
        return None
    params: dict[str, str] = {}
    for want, got in zip(pattern, parts, strict=True):
        if want[:1] == "{":
            if not got:
                return None
            params[want[1:-1]] = got
        elif want != got:
            return None
    return params
