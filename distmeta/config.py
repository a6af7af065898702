"""The whole configuration of a run: one typed tree, one YAML file, `--set a.b=c` on top."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from distmeta.corpus import source_keys
from distmeta.corpus.config import HUGGING_FACE, CorpusConfig, SourceConfig, TokenizerConfig, is_remote
from distmeta.engine.config import EngineConfig
from distmeta.errors import UserError, one_line
from distmeta.evaluate.config import EvaluateConfig
from distmeta.impossible import impossible, missing_files
from distmeta.meta.config import MetaConfig
from distmeta.models.config import DEFAULT_MODEL, ModelConfig
from distmeta.packages import PACKAGE
from distmeta.paths import why_no_path
from distmeta.recipes import filled, recipe_table
from distmeta.section import Section
from distmeta.sweep.config import SpaceEntry, SweepConfig
from distmeta.tasks.config import TasksConfig
from distmeta.tracking.config import TrackingConfig
from distmeta.train.config import TrainConfig
from distmeta.yaml_text import Loader, parse_yaml, read_yaml


class Config(Section):
    """Everything that decides what a run does. Each section is declared beside the code that reads it."""

    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tasks: TasksConfig = TasksConfig()
    model: ModelConfig = ModelConfig()
    meta: MetaConfig = MetaConfig()
    engine: EngineConfig = EngineConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig = SweepConfig()


def load_config(
    path: Path | None = None, overrides: Sequence[str] = (), *, check: bool = True, files: bool = True
) -> Config:
    """The configuration in a YAML file, or all defaults without one, with `key=value` overrides applied.

    Relative paths in the file are read from the file's own folder, those in overrides from the current one; both
    come out absolute, since workers run elsewhere. Without `check` the values are taken as they are together, and
    sources need not be there: for a file that a run has written. Without `files` alone what the corpus is made from
    need not be there: for a run that may have its corpus already.

    Raises:
        UserError: one line for each unknown key, wrong type, missing file or impossible combination.
    """
    tree: Any = {}
    if path is not None:
        tree = read_yaml(path)
        if tree is None:
            tree = {}
        if not isinstance(tree, dict):
            raise UserError(f"{path}: the top level must be a mapping of sections, such as `meta:`")
        _make_paths_absolute(tree, path.resolve().parent)
    for override in overrides:
        _set(tree, override)
    # A section of which every key is commented out reads as nothing.
    config = _validate({section: values for section, values in tree.items() if values is not None})
    found = [*impossible(filled(config)), *(missing_files(config) if files else ())] if check else []
    if check and config.model.name_or_path is not None:
        keys = (override.partition("=")[0].strip() for override in overrides)
        if idle := next((key for key in keys if f"{key}.".startswith("model.config.")), None):
            found.append(
                f"--set {idle}: is of a new model, and model.name_or_path loads {config.model.name_or_path}; leave it "
                "out, or set model.name_or_path=null"
            )
    problems = [one_line(problem) for problem in found]
    if problems:
        raise UserError("\n".join(problems))
    return config


def _validate(tree: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(error.errors(), tree))) from None


def read_key(config: Config, key: str) -> Any:
    """The value of a dotted key, such as `meta.inner_lr`, `model.config.hidden_size` or `corpus.sources.NAME.weight`.

    Raises:
        UserError: there is no such key; the nearest one is named.
    """
    if key.startswith(source_keys.PREFIX):
        return source_keys.read_weight(key, config.corpus, config.tasks)
    node: Any = config.model_dump()
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise UserError(_unknown(key))
        node = node[part]
    if key in Config.model_fields:
        raise UserError(f"{key}: is a section; name one of its keys")
    return node


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy in which dotted keys have other values.

    Raises:
        UserError: one line for each key that is not there or cannot have its value.
    """
    tree = config.model_dump()
    weights = {key: value for key, value in values.items() if key.startswith(source_keys.PREFIX)}
    for key, value in values.items():
        if key in weights:
            continue
        read_key(config, key)
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    changed = _validate(tree)
    if not weights:
        return changed
    tree = changed.model_dump()
    for key, value in weights.items():
        source_keys.set_weight(tree, key, value, changed.corpus, changed.tasks)
    return _validate(tree)


def _set(tree: dict[str, Any], override: str) -> None:
    """Sets one key of the raw tree, in place; what stood there is replaced."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(one_line(f"--set {override}: write it as key=value, for example --set meta.inner_lr=0.01"))
    parents, last = _path(key)
    value = parse_yaml(text, one_line(f"--set {key}"))
    if key.startswith(source_keys.PREFIX):
        sources = source_keys.set_by_name(tree, key, value)
        if last == "path":
            _make_paths_absolute({"corpus": {"sources": sources}}, Path.cwd())
        return
    model = tree.get("model")
    if parents == ["model", "config"] and (model is None or (isinstance(model, dict) and model.get("config") is None)):
        if last == "model_type" and value != DEFAULT_MODEL[last]:
            raise UserError(
                f"--set {key}: the other keys of the default model.config are a {DEFAULT_MODEL[last]}'s; set all of "
                "it, for example --set 'model.config={model_type: gpt2, n_layer: 2}'"
            )
        tree["model"] = {**(model or {}), "config": dict(DEFAULT_MODEL)}
    alone: dict[str, Any] = {}
    for branch in (alone, tree):
        node = branch
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise UserError(one_line(f"--set {key}: {parent} is a value, not a section"))
        if branch is alone:
            node[last] = value
            _make_paths_absolute(alone, Path.cwd())
            value = node[last]
        else:
            node[last] = value


def _path(key: str) -> tuple[list[str], str]:
    """The mappings that a dotted key leads through, and its place in the last; a key in `sweep.space` stays whole."""
    *parents, last = key.split(".")
    if parents[:2] == ["sweep", "space"] and len(parents) > 2:
        if last in SpaceEntry.model_fields:
            return ["sweep", "space", ".".join(parents[2:])], last
        return ["sweep", "space"], ".".join([*parents[2:], last])
    return parents, last


# --- paths ------------------------------------------------------------------------------------------------------

_PATH_KEYS = (
    ("corpus", "stop_words_file"),
    ("corpus", "directory"),
    ("tokenizer", "name_or_path"),
    ("tasks", "split_files", "train"),
    ("tasks", "split_files", "valid"),
    ("tasks", "split_files", "test"),
    ("model", "name_or_path"),
    ("train", "storage"),
    ("evaluate", "similarity"),
)
# A relative path of these may as well be a name on a hub, so it becomes absolute only where the folder is there.
_HUB_KEYS = {("tokenizer", "name_or_path"), ("model", "name_or_path")}


def _make_paths_absolute(tree: dict[str, Any], base: Path) -> None:
    """Joins every relative path in the raw tree to `base`, in place; what has the wrong type is left for the checks."""

    def absolute(value: Any, only_if_present: bool = False) -> Any:
        if not isinstance(value, str) or is_remote(value) or (only_if_present and value.startswith(PACKAGE)):
            return value
        if value.startswith(HUGGING_FACE):
            return HUGGING_FACE + absolute(value.removeprefix(HUGGING_FACE), only_if_present=True)
        if why_no_path(value):  # which is told where the values are checked
            return value
        joined = str(base / os.path.expanduser(value))
        return joined if os.path.exists(joined) or not only_if_present else value

    for keys in _PATH_KEYS:
        node: Any = tree
        for key in keys[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and keys[-1] in node:
            node[keys[-1]] = absolute(node[keys[-1]], only_if_present=keys in _HUB_KEYS)
    corpus = tree.get("corpus")
    if isinstance(corpus, dict) and isinstance(corpus.get("sources"), list):
        for number, source in enumerate(corpus["sources"]):
            if isinstance(source, dict) and "path" in source:
                source["path"] = absolute(source["path"], only_if_present=source.get("format") == "huggingface")
            else:
                corpus["sources"][number] = absolute(source)


# --- what is wrong, in one line each ----------------------------------------------------------------------------


def valid_keys() -> list[str]:
    """Every key of the tree, dotted, in order."""
    return [f"{section}.{key}" for section, model in _sections() for key in model.model_fields]


def _sections() -> Iterable[tuple[str, type[BaseModel]]]:
    for name, field in Config.model_fields.items():
        assert isinstance(field.annotation, type)
        yield name, field.annotation


def _explain(errors: list[ErrorDetails], tree: dict[str, Any]) -> Iterable[str]:
    by_key: dict[str, list[ErrorDetails]] = {}
    for details in errors:
        by_key.setdefault(_place(details, tree), []).append(details)
    for key, tried in by_key.items():
        if any(other.startswith(f"{key}.") for other in by_key):
            continue  # the right type was tried too, and says more
        if tried[0]["type"] in ("extra_forbidden", "invalid_key"):
            yield _unknown(key)
        elif tried[0]["type"] == "missing":
            yield f"{key}: is missing"
        else:
            messages = dict.fromkeys(_message(details) for details in tried)
            yield one_line(f"{key}: {' or '.join(messages)}, got {_shown(tried[0]['input'])}")


def _place(details: ErrorDetails, tree: dict[str, Any]) -> str:
    """The dotted key of an error. Where a key takes several types, pydantic adds the one that it tried."""
    node: Any = tree
    parts: list[str] = []
    *_, last = details["loc"]
    for part in details["loc"]:
        is_step = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        if is_step:
            node = node[part]
            if parts == ["corpus", "sources"] and isinstance(node, dict) and isinstance(node.get("name"), str):
                part = node["name"] or part
        if is_step or (part == last and details["type"] in ("missing", "invalid_key") and part != "[key]"):
            parts.append(one_line(str(part)))
    return ".".join(parts)


def _message(details: ErrorDetails) -> str:
    if details["type"] in ("dict_type", "model_type"):
        return "should be a mapping of keys to values"
    return re.sub("^Input should", "should", details["msg"]).removeprefix("Value error, ")


def _shown(value: object) -> str:
    """A value that may be shown: what stands inside a mapping or a list may be a key or a password."""
    return {dict: "a mapping", list: "a list", type(None): "null"}.get(type(value)) or repr(value)


def _unknown(key: str) -> str:
    """The value is not shown: people put keys and passwords where they don't belong."""
    if key.startswith(source_keys.PREFIX):
        last = key.rpartition(".")[2].lower().replace("-", "_")
        near = difflib.get_close_matches(last, SourceConfig.model_fields, n=1, cutoff=0.5)
        told = f"did you mean {near[0]}?" if near else f"a source has {', '.join(SourceConfig.model_fields)}"
        return f"{key}: unknown key; {told}"
    known = valid_keys() + [name for name, _ in _sections()]
    plain = key.lower().replace("-", "_")
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.5) or [
        name for name in known if name.split(".")[-1] == plain.split(".")[-1]
    ]
    return f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "; see `distmeta config`")


# --- printing ---------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes each string that this loader or a usual one would take for something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (it is yaml's own attribute)
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
    }


def to_yaml(config: Config, comments: bool = False) -> str:
    """The configuration as YAML that `load_config` reads back; with `comments`, a line of meaning above each key, and
    the recipes at the end."""
    lines = []
    for section, model in _sections():
        if section == "sweep" and not comments and config.sweep == SweepConfig():
            continue  # of no use to a single run
        if comments:
            lines += ["", f"# {(model.__doc__ or '').splitlines()[0]}"]
        lines.append(f"{section}:")
        values = getattr(config, section).model_dump()
        for key, field in model.model_fields.items():
            if comments:
                lines += [f"  # {line.strip()}" for line in (field.description or "").splitlines()]
            text = yaml.dump({key: values[key]}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
            lines += [f"  {line}" for line in text.rstrip("\n").split("\n")]
    if comments:
        lines += [
            "",
            "# Recipes: what is unset (null) by meta.algorithm, of a loaded model (model.name_or_path) and a new one",
        ]
        lines += [f"# {line}" for line in recipe_table()]
    return "\n".join(lines).lstrip("\n") + "\n"
