"""Malformed configurations, drawn from a seed over the typed tree."""

import random
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel

from distmeta.config import Config

# fmt: off
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**70, -(2**64), 10**9, 10**400, 0.0, -0.0, 0.5, -1e-9, 1e-320, 1e308,
    float("inf"), float("nan"), "", " ", "x", "0", "1e-3", "true", "null", "none", "auto", "all", "~", "~nobody/x", "*",
    "[", "(", "regex:", r"regex:^(\w|\w\w|\.)*[ !]$",
    r"^(\w|\w\w|\.)*[ !]$", "regex:(?P<n>x)(?P<n>y)", "\x00", "a\x00b",
    "../" * 40, "x" * 5000, "\u202e", "\U0001f600", "é\n\nmeta: 1", "s3://", "s3://a:b@c/d", "http://[", "huggingface:",
    "builtin:", "huggingface:\x00", "file:///etc/passwd", "/dev/null", "/", ".", "**", "**/[", [], {}, [[]], [None],
    [1, 2, 3], [0.5, 0.25, 0.25], [1e308, 1e308, -1e308], ["a", "a"], {"a": 1}, {"path": "a.txt"}, list(range(300)),
    {"path": "a.txt", "format": []}, {"type": "choice", "values": [1]}, {"": {}}, [{"a": [{"b": {}}]}],
    {"model_type": "bert"}, {1: 2}, {"a": float("nan")},
]
"""Of the wrong type, out of any range, or strange in themselves."""

TEXTS = [
    "KEY: &a [*a]", "KEY: &a 1\nx: *a", "<<: {meta: {inner_lr: 1}}", "meta:\n\tinner_lr: 1", "KEY: !own 3",
    "KEY: !!str",
    "KEY: !!python/name:os.system x", "KEY: !!binary aGVsbG8=", "KEY: !!binary '*'", "KEY: !!int x", "KEY: !!int 0b1_2",
    "KEY: !!float x", "KEY: !!bool maybe", "KEY: !!null 3", "KEY: !!timestamp x", "KEY: !!timestamp 2026-01-01",
    "KEY: !!set {a, b}", "KEY: !!omap [a: 1]", "!!str meta: 1", "KEY: 2026-01-01", "KEY: 12:30:45",
    "KEY: 0o17",    "KEY: =",
    "KEY: 1e999", "KEY: -1e999", "KEY: 1__0", "KEY: 1_", "KEY: [", "KEY: ]", "KEY: {", "KEY: 'a", "KEY: |\n  a\n b",
    "KEY: a: b", "KEY", "KEY: @x", "KEY: `x`", "%YAML 9.9\n---\nKEY: 1", "? [a, b]\n: 1", "? {a: b}\n: 1", "1: 2",
    "null: 2", "true: {}", "1.5: []", "'': 1", "---\nKEY: 1\n---\nKEY: 2", "KEY: 1\nKEY: 2", "KEY: 1\nKEY : 2", "- KEY",
    "~", "3", "# nothing", "", "\n\n", "...", "meta: &m {<<: *m}", "KEY: *nothing", 'KEY: "\\ud800"', 'KEY: "\\0"',
    'KEY: "\\q"', "KEY: \x07", "KEY: \x7f", "KEY: \ufffe", "\ufeffKEY: 1", "KEY:\u2028 1", "KEY: \u00a01", "''",
    "KEY: 0x" + "f" * 5000, "KEY: " + "9" * 5000, "KEY: " + "[" * 3000 + "]" * 3000, "{a: " * 2000, "- " * 3000,
    "x: &x [a, a, a, a, a, a, a, a]\n" + "".join(
        f"y{n}: &y{n} [" + ", ".join([f"*{'x' if n == 0 else f'y{n - 1}'}"] * 8) + "]\n" for n in range(9)
    ),
]
"""Texts around a key, in which YAML itself is at fault or at the edge of it."""
# fmt: on


@dataclass
class Case:
    """A configuration file, and what is given beside it."""

    content: bytes
    overrides: list[str] = field(default_factory=list)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the tree, dotted, sections included, with its type."""
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}", info.annotation
        for inner in (info.annotation, *typing.get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner, f"{prefix}{name}.")


TYPES = dict(fields(Config))
KEYS = list(TYPES)

WIDTHS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "llama", "albert", "mixtral", "qwen2"), WIDTHS),
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1},
    **{name: {} for name in ("t5", "vit", "nothing", "Bert", "")},
}
MODEL_KEYS = [
    "hidden_size",
    "n_embd",
    "dim",
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_attention_heads",
    "n_head",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "n_positions",
    "hidden_act",
    "activation_function",
    "pad_token_id",
    "bos_token_id",
    "type_vocab_size",
    "layer_norm_eps",
    "initializer_range",
    "hidden_dropout_prob",
    "num_key_value_heads",
    "rope_theta",
    "rope_parameters",
    "head_dim",
    "torch_dtype",
    "dtype",
    "attn_implementation",
    "_attn_implementation",
    "is_decoder",
    "is_encoder_decoder",
    "num_labels",
    "id2label",
    "use_cache",
    "architectures",
    "quantization_config",
    "model_type",
    "transformers_version",
    "tie_word_embeddings",
    "__class__",
    "to_dict",
    "num_local_experts",
    "chunk_size_feed_forward",
    "pruned_heads",
    "name_or_path",
    "attribute_map",
    "problem_type",
    "output_attentions",
    "layer_types",
]


def typo(word: str, draw: random.Random) -> str:
    """The word with a letter wrong, left out or doubled, or in other writing."""
    at = draw.randrange(len(word))
    ways = (word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], word[:at] + "q" + word[at + 1 :])
    return draw.choice([*ways, word.upper(), word.replace("_", "-"), word + " ", "_" + word, word * 2])


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key, whatever stands in its way."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value


def small(draw: random.Random) -> Any:
    """A value like those that people set, of a type that may be wrong."""
    return draw.choice([draw.randint(-2, 20), draw.random(), 10.0 ** draw.randint(-8, 8), draw.choice(["a.txt", "b"])])


def value(draw: random.Random) -> Any:
    """Any value."""
    return draw.choice(VALUES) if draw.random() < 0.8 else small(draw)


def plausible(annotation: Any, draw: random.Random) -> Any:
    """A value of a field's own type, at the edge of what people set or beyond it."""
    if typing.get_origin(annotation) is typing.Literal:
        return draw.choice(typing.get_args(annotation))
    if typing.get_origin(annotation) is list:
        inner = typing.get_args(annotation)[0]
        return [plausible(inner, draw) for _ in range(draw.randint(0, 4))]
    if typing.get_origin(annotation) is dict:
        return {draw.choice(KEYS): draw.choice(VALUES)}
    if choices := typing.get_args(annotation):
        return plausible(draw.choice(choices), draw)
    if annotation is bool:
        return draw.random() < 0.5
    if annotation is int:
        return draw.choice([0, 1, 2, 3, 5, 7, 100, 10**6, 10**9, 2**31, 2**32, 2**63 - 1, -1])
    if annotation is float:
        return draw.choice([0.0, 1.0, 0.5, 1e-320, 1e-12, 1e12, 1e308, -1.0, 1.0000001, 2.0])
    if annotation is str:
        return draw.choice([text for text in VALUES if isinstance(text, str)])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {name: plausible(info.annotation, draw) for name, info in annotation.model_fields.items()}
    return None


KINDS = ["value", "value", "plausible", "plausible", "plausible", "unknown", "model", "model", "source", "space"]
KINDS += ["override", "text"]


def malformed(seed: int) -> Case:
    """The configuration of that number."""
    draw = random.Random(seed)
    tree: dict[str, Any] = {"corpus": {"sources": ["a.txt"]}}
    case = Case(b"")
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        _tamper(tree, case, draw)
    case.content = yaml.dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass") + case.content
    if draw.random() < 0.1:  # bytes changed, in whatever place
        content = bytearray(case.content)
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        case.content = bytes(content)
    if draw.random() < 0.05:
        text = draw.choice(["", "\ufeff"]) + case.content.decode("utf-8", "replace")
        case.content = text.encode(draw.choice(["utf-8", "utf-16", "utf-16-le", "latin-1", "utf-32"]), "replace")
    return case


def _tamper(tree: dict[str, Any], case: Case, draw: random.Random) -> None:
    """Makes one change to the tree, or adds one to the case."""
    kind = draw.choice(KINDS)
    if kind == "text":
        text = draw.choice(TEXTS).replace("KEY", draw.choice(KEYS).split(".")[0]) + draw.choice(["", "\n"])
        case.content += text.encode("utf-8", "surrogatepass")
    elif kind == "model":
        name = draw.choice(list(MODELS))
        put(tree, "model.config", {"model_type": name, **MODELS[name], draw.choice(MODEL_KEYS): value(draw)})
    elif kind == "source":
        entry: Any = {"path": draw.choice(["a.txt", value(draw)])}
        entry[draw.choice(["format", "columns", "config", "split", "encoding", "pth"])] = value(draw)
        put(tree, "corpus.sources", [draw.choice([entry, value(draw)]) for _ in range(draw.randint(1, 3))])
    elif kind == "space":
        entry = {"type": draw.choice(["loguniform", "uniform", "randint", "choice", "grid", value(draw)])}
        entry |= {name: value(draw) for name in draw.sample(["low", "high", "values", "when"], 2)}
        if draw.random() < 0.4:
            entry["low"], entry["high"] = sorted((draw.uniform(-3, 3), draw.uniform(-3, 3)))
        key = draw.choice([draw.choice(KEYS), "meta.inner_lr", "model.config.hidden_size", "x.y"])
        space = {key: entry, "meta.outer_lr": {"type": "choice", "values": [0.1, value(draw)]}}
        put(tree, "sweep.space", space)
        put(tree, "sweep.search", draw.choice(["random", "grid", "optuna"]))
    else:
        key = draw.choice(KEYS)
        drawn = plausible(TYPES[key], draw) if kind == "plausible" else value(draw)
        if kind == "unknown":
            *parents, last = key.split(".")
            key = ".".join([*parents, typo(last, draw)])
        if kind == "override" or draw.random() < 0.15:
            text = yaml.dump(drawn, allow_unicode=True, default_flow_style=True, width=10**6).removesuffix("...\n")
            forms = [f"{key}={text}", f"{key}={text}", f"{key}={drawn}", key, f"={text}", f"{key}.x={text}"]
            case.overrides.append(draw.choice([*forms, f" {key} = {text}"]))
        else:
            put(tree, key, drawn)
