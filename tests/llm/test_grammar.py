"""Whatever a model wants, constrained text matches its grammar; what cannot be matched is refused beforehand."""

import json
import re

import numpy as np
import pytest

from foretell.core.errors import InvalidInput, PackageError
from foretell.core.generation import Grammar
from foretell.llm.grammar import Grammars
from foretell.llm.text import Tokenizer
from tests.llm import smollm2

VOCAB, EOS = 49152, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return smollm2.tokenizer_folder(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def grammars(folder):
    return Grammars(folder / "tokenizer.json", VOCAB, [EOS])


def allows(constraint, token):
    return bool(constraint.mask()[token >> 5] >> (token & 31) & 1)


def allowed(constraint):
    return np.flatnonzero(np.unpackbits(constraint.mask().view(np.uint8), bitorder="little"))


def follows(constraint, tokenizer, text):
    """Whether `text` may be said and may end there."""
    for token in tokenizer.encode(text, special=False):
        if not allows(constraint, token):
            return False
        constraint.advance(token)
    return allows(constraint, EOS)


def babble(constraint, tokenizer, seed, most=400):
    """A text of random allowed tokens; None if it is not finished after `most`."""
    random = np.random.default_rng(seed)
    said = []
    for _ in range(most):
        if constraint.finished:
            return tokenizer.decode(said)
        token = int(random.choice(allowed(constraint)))
        constraint.advance(token)
        if token == EOS:
            return tokenizer.decode(said)
        said.append(token)
    return None


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"a": 1}', True),
        ('{"a":[1,2,{"b":null}]}', True),
        ('{\n  "name": "Zoë",\n  "age": 3\n}', True),
        ("{}", True),
        ('[{"a": 1}]', False),
        ('"a"', False),
        ('{"a": 1', False),
        ("{'a': 1}", False),
        ('{"a": 1} and more', False),
        ('Sure! {"a": 1}', False),
    ],
)
def test_json_is_one_object_and_nothing_else(grammars, tokenizer, text, good):
    assert follows(grammars.start(Grammar("json")), tokenizer, text) == good


def test_white_space_in_json_is_bounded(grammars, tokenizer):
    assert follows(grammars.start(Grammar("json")), tokenizer, '{\n        "a": 1}')
    assert not follows(grammars.start(Grammar("json")), tokenizer, "{" + "\n" * 100 + '"a": 1}')


SCHEMAS = [
    {
        "type": "object",
        "properties": {"size": {"enum": ["s", "m", "l"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["size", "count"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {
        "anyOf": [
            {"const": "none"},
            {"type": "object", "properties": {"x": {"type": "null"}}, "additionalProperties": False},
        ]
    },
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"v": {"enum": [1, 2]}, "kid": {"$ref": "#/$defs/tree"}},
                "required": ["v"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {"type": "string", "pattern": "^[a-c]{2}-[0-9]{3}$"},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_random_text_is_valid_against_its_schema(grammars, tokenizer, schema):
    jsonschema = pytest.importorskip("jsonschema_rs")
    finished = 0
    for seed in range(12):
        text = babble(grammars.start(Grammar("json_schema", json.dumps(schema))), tokenizer, seed)
        if text is not None:
            jsonschema.validate(schema, json.loads(text))
            finished += 1
    assert finished > 4


def test_random_text_matches_its_regular_expression(grammars, tokenizer):
    for seed in range(10):
        pattern = r"(yes|no), because of [a-z]{3,9} and [0-9]+\."
        text = babble(grammars.start(Grammar("regex", pattern)), tokenizer, seed)
        assert text is None or re.fullmatch(pattern, text)


def test_lark_grammars_are_followed(grammars, tokenizer):
    sums = Grammar("lark", 'start: term ("+" term)*\nterm: /[0-9]+/ | "(" start ")"\n')
    assert follows(grammars.start(sums), tokenizer, "1+(22+3)+4")
    assert not follows(grammars.start(sums), tokenizer, "1+(22+3")
    assert not follows(grammars.start(sums), tokenizer, "a")


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("json_schema", "{"), "the JSON schema: EOF while parsing"),
        (Grammar("json_schema", ""), "the JSON schema: EOF"),
        (Grammar("json_schema", "[1]"), "the JSON schema: Expecting object"),
        (Grammar("json_schema", '{"type": "colour"}'), "Invalid type: colour"),
        (Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (Grammar("json_schema", '{"$ref": "#/nowhere"}'), "nowhere"),
        (Grammar("json_schema", '{"allOf": [{"type": "string"}, {"type": "null"}]}'), "Unsatisfiable"),
        (Grammar("regex", "a("), "unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("regex", r"[^\s\S]"), "impossible: no text matches"),
        (Grammar("lark", ""), "Empty grammar"),
        (Grammar("lark", "start: foo"), 'unknown name: "foo"'),
        (Grammar("lark", 'start: x\nx: x "a"'), "impossible: no text matches"),
        (Grammar("lark", "START: /a/ & /b/\nstart: START"), "impossible: no text matches"),
    ],
    ids=str,
)
def test_bad_and_impossible_grammars_are_refused_with_the_reason(grammars, grammar, message):
    with pytest.raises(InvalidInput) as caught:
        grammars.start(grammar)
    assert message in caught.value.message
    assert "<state>" not in caught.value.message


def test_equal_grammars_are_compiled_once_and_advance_apart(grammars, tokenizer):
    grammar = Grammar("regex", "ab|cd")
    first, second = grammars.start(grammar), grammars.start(Grammar("regex", "ab|cd"))
    first.advance(tokenizer.encode("a", special=False)[0])
    assert allows(second, tokenizer.encode("c", special=False)[0])
    assert not allows(first, tokenizer.encode("c", special=False)[0])
    third = grammars.start(grammar)
    assert allows(third, tokenizer.encode("c", special=False)[0])


def test_after_its_end_nothing_but_the_end_is_allowed(grammars, tokenizer):
    constraint = grammars.start(Grammar("regex", "ab"))
    for token in tokenizer.encode("ab", special=False):
        assert not constraint.finished
        constraint.advance(token)
    assert constraint.finished
    assert allowed(constraint).tolist() == [EOS]
    constraint.advance(EOS)
    assert constraint.finished
    assert constraint.error == ""


def test_control_tokens_never_stand_for_their_text(grammars, folder, tokenizer):
    constraint = grammars.start(Grammar("regex", r"[\s\S]*"))
    assert not set(allowed(constraint)) & (tokenizer.special_ids - {EOS})


def test_logits_may_be_wider_than_the_tokenizer(folder):
    wide = Grammars(folder / "tokenizer.json", VOCAB + 100, [EOS]).start(Grammar("regex", r"[\s\S]*"))
    assert len(wide.mask()) == -(-(VOCAB + 100) // 32)
    assert allowed(wide).max() < VOCAB


def test_a_tokenizer_that_cannot_be_read_is_a_package_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PackageError, match=r"tokenizer\.json"):
        Grammars(tmp_path / "tokenizer.json", 10, [1])
