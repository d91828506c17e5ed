"""Which version answers: the routing table, a value that is swapped whole."""

from collections.abc import Mapping

import msgspec
import xxhash

from foretell.core.errors import NotFound, did_you_mean


class Target(msgspec.Struct, frozen=True):
    """A version and its share of the traffic (weights need not sum to one)."""

    version: str
    weight: float = 1.0


class Route(msgspec.Struct, frozen=True):
    """Where a name (or a name's alias) leads: its weighted versions."""

    targets: tuple[Target, ...]

    def pick(self, sticky: str, draw: float) -> str:
        """The version that answers. The same `sticky` key always draws the same; without one, `draw` in
        [0, 1) decides.
        """
        if len(self.targets) == 1:
            return self.targets[0].version
        if sticky:
            draw = xxhash.xxh3_64_intdigest(sticky.encode()) / 2**64
        rest = draw * sum(t.weight for t in self.targets)
        for target in self.targets:
            rest -= target.weight
            if rest < 0:
                return target.version
        return self.targets[-1].version


class RoutingTable(msgspec.Struct, frozen=True):
    """`routes` maps "name" (default route) and "name@alias" to a `Route`; a plain "name@3" needs no route."""

    routes: Mapping[str, Route]

    def find(self, name: str, alias: str = "") -> Route:
        key = f"{name}@{alias}" if alias else name
        try:
            return self.routes[key]
        except KeyError:
            raise NotFound(f'no model "{key}" is served here. {did_you_mean(key, self.routes)}') from None
