"""Which columns of a table feed which inputs of a model: a value, written by people as `column=input`."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from foretell.core.errors import InvalidInput, did_you_mean
from foretell.core.tensor import Signature


class ColumnMap(msgspec.Struct, frozen=True):
    """Input → the column that feeds it, or several scalar columns that make one vector, in that order.

    Inputs that are not named here are fed by the column of the same name (see `complete`).
    """

    feeds: Mapping[str, tuple[str, ...]] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, each once."""
        return tuple(dict.fromkeys(column for columns in self.feeds.values() for column in columns))

    def complete(self, signature: Signature, known: Sequence[str]) -> "ColumnMap":
        """The map with every input of `signature`, in its order; `known` are the columns there are.

        Raises `InvalidInput` for an input that the model does not have, a column that the table does not have, and an
        input that nothing feeds.
        """
        inputs = [spec.name for spec in signature.inputs]
        for name in self.feeds:
            if name not in inputs:
                raise InvalidInput(f'the model has no input "{name}" to map to. {did_you_mean(name, inputs)}')
        feeds = {}
        for spec in signature.inputs:
            columns = self.feeds.get(spec.name)
            if columns is None and spec.name not in known:
                raise InvalidInput(
                    f'no column feeds input "{spec.name}" ({spec}); map one: COLUMN={spec.name}.'
                    f" {did_you_mean(spec.name, known)}"
                )
            feeds[spec.name] = columns or (spec.name,)
            for column in feeds[spec.name]:
                if column not in known:
                    raise InvalidInput(f'there is no column "{column}". {did_you_mean(column, known)}')
        return ColumnMap(feeds)


def parse_column_map(items: Iterable[str]) -> ColumnMap:
    """`column=input` and `first,second,third=input`, each input once. Raises `InvalidInput`.

    >>> parse_column_map(["review=text", "width,height=X"]).feeds
    {'text': ('review',), 'X': ('width', 'height')}
    """
    feeds: dict[str, tuple[str, ...]] = {}
    for item in items:
        left, equals, name = item.rpartition("=")
        columns = tuple(column.strip() for column in left.split(","))
        name = name.strip()
        if not equals or not name or not all(columns):
            raise InvalidInput(f'"{item}" maps nothing; write COLUMN=INPUT, or FIRST,SECOND,…=INPUT for a vector')
        if name in feeds:
            raise InvalidInput(f'input "{name}" is mapped twice; give all its columns at once: a,b,c={name}')
        feeds[name] = columns
    return ColumnMap(feeds)
