"""`--where` as people write it → a filter of Arrow. Parsed, never executed."""

import ast
import operator
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from foretell.core.errors import InvalidInput, did_you_mean

_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left.isin(right),
    ast.NotIn: lambda left, right: ~left.isin(right),
    ast.Is: lambda left, right: left.is_null(),
    ast.IsNot: lambda left, right: left.is_valid(),
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.And: operator.and_,
    ast.Or: operator.or_,
}
FORM = "write comparisons such as: month >= 3 and carrier in ['UA', 'AA'] and not dep_time is None"


class Where:
    """A filter and the columns that it reads. Raises `InvalidInput` where the text is no filter."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.columns: tuple[str, ...] = ()
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise InvalidInput(f'--where "{text}" cannot be read: {error.msg}; {FORM}') from None
        self._tree = tree
        self._expression(tree, pa.schema([]))

    def check(self, schema: pa.Schema) -> None:
        """Raise `InvalidInput` for a column that is not there, or that is compared with what it cannot hold."""
        for column in self.columns:
            if column not in schema.names:
                raise InvalidInput(f'--where "{self.text}": no column "{column}". {did_you_mean(column, schema.names)}')
        self.apply(schema.empty_table())

    def apply(self, table: pa.Table) -> pa.Table:
        """The rows for which the filter holds. Raises `InvalidInput` where it cannot be computed."""
        try:
            return table.filter(self._expression(self._tree, table.schema))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise InvalidInput(f'--where "{self.text}" does not fit the columns: {error}') from None

    def _expression(self, node: ast.AST, schema: pa.Schema) -> Any:
        match node:
            case ast.Name(id=name):
                self.columns = (*self.columns, name) if name not in self.columns else self.columns
                return pc.field(name)
            case ast.BoolOp(op=op, values=values):
                return self._fold([type(op)] * (len(values) - 1), [self._expression(value, schema) for value in values])
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                return ~self._expression(operand, schema)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](self._expression(left, schema), self._expression(right, schema))
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._compare(left, ops, others, schema)
        return pc.scalar(self._constant(node))

    def _compare(self, left: ast.expr, ops: Sequence[ast.cmpop], others: Sequence[ast.expr], schema: pa.Schema) -> Any:
        found = None
        for op, other in zip(ops, others, strict=True):
            if isinstance(op, ast.Is | ast.IsNot) and not (isinstance(other, ast.Constant) and other.value is None):
                raise InvalidInput(f'--where "{self.text}": only None can follow "is"; {FORM}')
            if isinstance(op, ast.In | ast.NotIn):
                right = _like(self._constant(other), left, schema)
            else:
                right = self._operand(other, left, schema)
            each = _BINARY[type(op)](self._operand(left, other, schema), right)
            found = each if found is None else found & each
            left = other
        return found

    def _operand(self, node: ast.expr, beside: ast.expr, schema: pa.Schema) -> Any:
        """One side of a comparison; the other one says what a text is."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return pc.scalar(_like(node.value, beside, schema))
        return self._expression(node, schema)

    @staticmethod
    def _fold(ops: Sequence[type[ast.AST]], values: Sequence[Any]) -> Any:
        found = values[0]
        for op, value in zip(ops, values[1:], strict=True):
            found = _BINARY[op](found, value)
        return found

    def _constant(self, node: ast.AST) -> Any:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            shown = ast.unparse(node)
            raise InvalidInput(f'--where "{self.text}": "{shown}" cannot stand in a filter; {FORM}') from None


def _like(value: Any, beside: ast.expr, schema: pa.Schema) -> Any:
    """Texts beside a column of dates or times are dates or times."""
    kind = schema.field(beside.id).type if isinstance(beside, ast.Name) and beside.id in schema.names else None
    if kind is None or not pa.types.is_temporal(kind):
        return value
    return pa.array(value).cast(kind) if isinstance(value, list | tuple) else pa.scalar(value).cast(kind)
