"""Weights fill the network that they are loaded into, or are refused in a line; what is new, or not used, is said."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, BertModel, PreTrainedTokenizerFast
from transformers.utils import hub

from distmeta.config import load_config
from distmeta.errors import UserError
from distmeta.models import load_network
from distmeta.models.config import ModelConfig
from distmeta.models.look import look_at_weights
from distmeta.models.on_disk import parameters_on_disk
from distmeta.pipeline import pretrain
from distmeta.rundir import RunDirectory
from distmeta.setup import check_weights, resolve
from distmeta.sweep.directory import SweepDirectory
from distmeta.sweep.run import run_trials
from tests.corpora import tiny_config, write_labelled_csv
from tests.helpers import word_tokenizer

SIZES = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
LAYER = {"bert": "encoder.layer.1.", "gpt2": "h.1.", "llama": "layers.1."}
OWN = {"bert": "bert.", "gpt2": "transformer.", "llama": "model."}
"""What stands before the names of the bare network in those of its language model."""
TOKENIZER = word_tokenizer(50)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind of model, with a language model's head."""
    folders = {}
    for model_type, sizes in SIZES.items():
        torch.manual_seed(1)
        config = AutoConfig.for_model(model_type, vocab_size=50, tie_word_embeddings=model_type != "llama", **sizes)
        auto = AutoModelForMaskedLM if model_type == "bert" else AutoModelForCausalLM
        folders[model_type] = tmp_path_factory.mktemp(model_type)
        auto.from_config(config).save_pretrained(folders[model_type])
        TOKENIZER.save_pretrained(folders[model_type])
    return folders


def tensors_of(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def changed(folder: Path, to: Path, tensors: Tensors | None = None, **config: object) -> Path:
    """A copy of the folder with other tensors (None: no weights), and other values in its configuration."""
    shutil.copytree(folder, to)
    (to / "model.safetensors").unlink()
    if tensors is not None:
        save_file({name: value.contiguous() for name, value in tensors.items()}, to / "model.safetensors")
    file = to / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return to


def load(folder: Path | str, *, language_model: bool = True):
    options = {"pooling": "mean", "attention": "eager", "lora": False, "language_model": language_model, "seed": 0}
    return load_network(ModelConfig(name_or_path=str(folder)), TOKENIZER, computation="plain", **options)


def look(folder: Path | str, *, language_model: bool = True) -> str:
    return look_at_weights(ModelConfig(name_or_path=str(folder)), language_model=language_model)


def assert_loaded(folder: Path | str, tensors: Tensors, language_model: bool = True) -> str:
    """That the weights are those tensors; returns what is said of them."""
    said = look(folder, language_model=language_model)
    network = load(folder, language_model=language_model)
    model = network.model if language_model else network.base
    expected = {
        name.removeprefix("" if language_model else f"{model.base_model_prefix}."): v for name, v in tensors.items()
    }
    found = model.state_dict()
    shared = found.keys() & expected.keys()
    assert len(shared) >= 20
    assert all(torch.equal(found[name], expected[name]) for name in shared)
    base = {name for name, _ in model.base_model.named_parameters()}
    names = {name.removeprefix(f"{model.base_model_prefix}.") for name in shared}
    assert base <= names
    assert len(said.splitlines()) == 1
    return said


def assert_refused(folder: Path, *words: str, language_model: bool = True) -> None:
    """Before anything starts, and the same as it is loaded, in a line with these words."""
    messages = []
    for attempt in (look, load):
        with pytest.raises(UserError) as refusal:
            attempt(folder, language_model=language_model)
        messages.append(str(refusal.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"model.name_or_path: {folder}")
    assert len(messages[0].splitlines()) == 1
    for word in words:
        assert word in messages[0]


# Names that wrappers change


@pytest.mark.parametrize("model_type", list(SIZES))
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"model.{name}",
        lambda name: f"0.auto_model.{name}",
        lambda name: f"some.thing_of.mine.{name}",
        lambda name: name.replace(".1.", ".1._checkpoint_wrapped_module."),
        lambda name: f"_forward_module.{name.replace('.0.', '.0._orig_mod.')}",
    ],
)
def test_names_that_a_wrapper_changed_are_read_and_said(rename, model_type, folders, tmp_path):
    """torch.compile, DDP, Lightning, sentence-transformers, FSDP, and own wrappers, around the language model."""
    tensors = tensors_of(folders[model_type])
    renamed = {rename(name): value for name, value in tensors.items()}
    folder = changed(folders[model_type], tmp_path / "model", renamed)
    for language_model in (True, False):
        said = assert_loaded(folder, tensors, language_model)
        if language_model and "model.lm_head.weight" in renamed:
            continue  # which transformers reads by itself
        assert "names are read without what a wrapper put into them" in said
        assert any(f"{new} as {old}" in said for old, new in zip(tensors, renamed, strict=True))


@pytest.mark.parametrize("model_type", list(SIZES))
@pytest.mark.parametrize("prefix", ["", "net.", "encoder.", "_orig_mod.", "bert.", "transformer.", "backbone.module."])
def test_a_wrapper_around_the_bare_network(prefix, model_type, folders, tmp_path):
    tensors = tensors_of(folders[model_type])
    own = OWN[model_type]
    bare = {f"{prefix}{name.removeprefix(own)}": value for name, value in tensors.items() if name.startswith(own)}
    bare["loss.weight"] = torch.ones(3)
    folder = changed(folders[model_type], tmp_path / "model", bare)
    said = assert_loaded(folder, {name: value for name, value in tensors.items() if name.startswith(own)}, False)
    assert ("what a wrapper put into" in said) == (prefix not in ("", own))
    assert "not used: loss (1 tensor)" in said


def test_two_networks_in_a_file_are_not_chosen_between(folders, tmp_path):
    tensors = tensors_of(folders["bert"])
    both = {f"{of}.{name}": value.clone() for of in ("student", "teacher") for name, value in tensors.items()}
    assert_refused(
        changed(folders["bert"], tmp_path / "two", both), "holds 2 networks, student.bert.* and teacher.bert.*"
    )
    twice = {f"{of}.{name}": value.clone() for of in ("_orig_mod", "module") for name, value in tensors.items()}
    assert_refused(changed(folders["bert"], tmp_path / "twice", twice), "has two tensors for", "_orig_mod.")
    copy = tensors | {f"ema.{name}": value + 1 for name, value in tensors.items()}
    said = assert_loaded(changed(folders["bert"], tmp_path / "copy", copy), tensors)
    assert f"not used: ema ({len(tensors)} tensors)" in said


def test_names_of_older_versions_are_read(folders, tmp_path):
    tensors = tensors_of(folders["bert"])
    old = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for n, v in tensors.items()}
    old |= {"bert.embeddings.position_ids": torch.arange(9)[None]}
    assert old.keys() & tensors.keys() != tensors.keys()
    said = assert_loaded(changed(folders["bert"], tmp_path / "old", old), tensors)
    assert "what a wrapper put into" not in said
    assert "not used" not in said


# What is missing, or has no place


@pytest.mark.parametrize("model_type", list(SIZES))
def test_weights_that_lack_something_are_refused(model_type, folders, tmp_path):
    """Without a layer, without a tensor, and with more or fewer layers than the configuration says."""
    folder, tensors = folders[model_type], tensors_of(folders[model_type])
    layer = {name for name in tensors if LAYER[model_type] in name}
    without = {name: value for name, value in tensors.items() if name not in layer}
    first = f"first {OWN[model_type]}{LAYER[model_type]}"
    lacking = changed(folder, tmp_path / "layer", without)
    assert_refused(lacking, f"lacks {len(layer)} of the ", f"tensors of a {model_type} network of 2 layers", first)
    assert_refused(lacking, f"lacks {len(layer)} of the ", language_model=False)
    one = sorted(layer)[0]
    assert_refused(
        changed(folder, tmp_path / "one", {name: value for name, value in tensors.items() if name != one}),
        f"lacks 1 of the {len([name for name in tensors if 'cls' not in name and 'lm_head' not in name])} tensors",
        f"first {one}",
    )
    wrapped = {f"_orig_mod.{name}": value for name, value in without.items()}
    assert_refused(changed(folder, tmp_path / "wrapped", wrapped), f"lacks {len(layer)} of the ")
    layers = "n_layer" if model_type == "gpt2" else "num_hidden_layers"
    assert_refused(changed(folder, tmp_path / "more", tensors, **{layers: 4}), "lacks ", " of 4 layers")
    assert_refused(
        changed(folder, tmp_path / "fewer", tensors, **{layers: 1}),
        f" tensors that a {model_type} network as config.json describes it has no place for",
        "config.json says 1 layer",
    )


def test_weights_of_the_network_that_it_cannot_hold_are_refused(folders, tmp_path):
    """Adapters inside the layers, or biases where the configuration says none: without them it is another network."""
    tensors = tensors_of(folders["llama"])
    biased = tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
    assert_refused(changed(folders["llama"], tmp_path / "biased", biased), "has 1 tensor that", "q_proj.bias")


def test_a_shape_of_another_configuration_is_refused(folders, tmp_path):
    tensors = tensors_of(folders["bert"])
    assert_refused(
        changed(folders["bert"], tmp_path / "vocabulary", tensors, vocab_size=60),
        "does not fit config.json: bert.embeddings.word_embeddings.weight is 50 x 32, and a bert network of that "
        "configuration has 60 x 32",
    )
    gathered = {name: torch.zeros(0) for name in tensors}
    assert_refused(changed(folders["bert"], tmp_path / "zero3", gathered), "as ZeRO 3 leaves it", "zero_to_fp32.py")


def test_a_new_head_is_said_and_half_a_head_refused(folders, tmp_path):
    tensors = tensors_of(folders["bert"])
    bare = {name: value for name, value in tensors.items() if name.startswith("bert.")}
    folder = changed(folders["bert"], tmp_path / "bare", bare)
    assert "new: its language-model head (5 tensors, first cls.predictions.bias)" in assert_loaded(folder, bare)
    assert "language-model head" not in look(folder, language_model=False)
    assert not load(folder).remarks
    half = {name: value for name, value in tensors.items() if "cls.predictions.transform.dense" not in name}
    assert_refused(changed(folders["bert"], tmp_path / "half", half), "lacks 2 of the 5 tensors of its head")
    # Of one whose head is no copy of the embedding, too.
    untied = {name: value for name, value in tensors_of(folders["llama"]).items() if name != "lm_head.weight"}
    said = look(changed(folders["llama"], tmp_path / "llama", untied))
    assert "new: its language-model head (1 tensor, first lm_head.weight)" in said


def test_heads_that_are_not_used_are_said_and_a_pooler_may_be_missing(folders, tmp_path):
    tensors = tensors_of(folders["bert"])
    said = look(folders["bert"])
    assert said.endswith("not there, and therefore new: its pooler, which no loss reaches")
    assert "not used: cls (5 tensors)" in look(folders["bert"], language_model=False)
    more = tensors | {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.ones(3)}
    pooler = {"bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)}
    folder = changed(folders["bert"], tmp_path / "more", more | pooler)
    assert assert_loaded(folder, tensors).endswith("; not used: classifier (2 tensors)")
    assert torch.equal(load(folder).unused["pooler.dense.bias"], torch.ones(32))


def test_what_transformers_warns_of_is_passed_on(folders, tmp_path):
    """Two tables where the configuration says one; and an embedding that is too small for the tokenizer."""
    tensors = tensors_of(folders["gpt2"])
    apart = tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}
    (remark,) = load(changed(folders["gpt2"], tmp_path / "apart", apart)).remarks
    assert "we will NOT tie them" in remark
    small = {name: value[:48] if value.shape[0] == 50 else value for name, value in tensors.items()}
    (remark,) = load(changed(folders["gpt2"], tmp_path / "small", small, vocab_size=48)).remarks
    assert remark.startswith("the tokenizer has 50 tokens and the embedding of")
    assert remark.endswith("48 rows: 2 rows are new")
    rope = {"rope_type": "linear", "factor": 0.5, "rope_theta": 10000.0}
    folder = changed(folders["llama"], tmp_path / "rope", tensors_of(folders["llama"]), rope_parameters=rope)
    weights, warning = look(folder).splitlines()
    assert weights.startswith("weights: the 20 tensors of llama are in ")
    assert warning == "model: `rope_parameters`'s factor field must be a float or int >= 1, got 0.5"


def test_a_tokenizer_or_an_adapter_that_is_not_of_the_weights_is_said(folders, tmp_path):
    """A tokenizer of other words, and one that has more; and weights of their own are not spoken of."""
    words = TOKENIZER.get_vocab()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_config(write_labelled_csv(tmp_path / "texts.csv"))))
    model = [f"model={{name_or_path: {folders['bert']}}}"]

    def said(folder: Path) -> str:
        config = resolve(load_config(tmp_path / "run.yaml", [*model, f"tokenizer.name_or_path={folder}"]))
        return check_weights(config)

    for name, number in (("others", 45), ("more", 0)):
        own = word_tokenizer(60)
        if name == "others":
            backend = json.loads(own.backend_tokenizer.to_str())
            backend["model"]["vocab"] = {
                word: 69 - n if word.startswith("w") else n for word, n in backend["model"]["vocab"].items()
            }
            own = PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer.from_str(json.dumps(backend)), **own.special_tokens_map
            )
        own.save_pretrained(tmp_path / name)
        assert own.get_vocab().keys() > words.keys()
        expected = f"tokenizer.name_or_path: {tmp_path / name} has other numbers for {number} of the 50 tokens of"
        assert (expected in said(tmp_path / name)) == (number > 0)
    assert "tokenizer" not in said(folders["bert"]).replace("tokenizer_", "")
    folder = changed(folders["bert"], tmp_path / "model", tensors_of(folders["bert"]))
    (folder / "adapter_config.json").write_text("{}")
    assert "the adapter beside them (adapter_config.json) is not applied" in look(folder)


def test_a_new_model_beside_the_one_that_is_loaded_is_said_to_be_not_used(folders, tmp_path):
    tree = tiny_config(write_labelled_csv(tmp_path / "texts.csv"), model={"name_or_path": str(folders["bert"])})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    assert "\nmodel.config: not used" in check_weights(resolve(load_config(tmp_path / "run.yaml")))
    plain = resolve(load_config(tmp_path / "run.yaml", [f"model={{name_or_path: {folders['bert']}}}"]))
    assert "model.config" not in check_weights(plain)


def test_settings_that_come_with_a_model_stay_with_it(folders, tmp_path):
    folder = changed(folders["gpt2"], tmp_path / "model", tensors_of(folders["gpt2"]))
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 17}))
    model = load(folder).model
    assert model.generation_config.max_new_tokens == 17
    assert model.config.name_or_path == str(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_fp32(dtype, folders, tmp_path):
    tensors = {name: value.to(dtype) for name, value in tensors_of(folders["bert"]).items()}
    assert_loaded(
        changed(folders["bert"], tmp_path / "model", tensors), {name: v.float() for name, v in tensors.items()}
    )


def test_numbers_that_are_none_are_refused(folders, tmp_path, monkeypatch):
    """Also where the file is too large to be looked through beforehand, and where the weights are made on disk."""
    tensors, name = tensors_of(folders["bert"]), "bert.encoder.layer.1.output.dense.weight"
    for value in (float("nan"), float("inf")):
        broken = tensors | {name: torch.full_like(tensors[name], value)}
        folder = changed(folders["bert"], tmp_path / str(value), broken)
        for attempt in (look, load):
            with pytest.raises(UserError, match=f"{name} of .* has numbers that are not finite"):
                attempt(folder)
    monkeypatch.setattr("distmeta.models.look.READ_WHOLE", 0)
    assert "weights: " in look(folder)
    with parameters_on_disk(), pytest.raises(UserError, match="not finite"):
        load(folder)
    quantized = tensors | {name: torch.zeros_like(tensors[name], dtype=torch.int8)}
    assert_refused(changed(folders["bert"], tmp_path / "int8", quantized), f"has integers in {name}: it is quantized")


# Files


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("form", ["archive", "old", "shards", "safetensors shards"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_files_of_torch_and_shards_are_read(form, on_disk, model_type, folders, tmp_path):
    tensors = tensors_of(folders[model_type])
    folder = changed(folders[model_type], tmp_path / "model")
    if form in ("archive", "old"):
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "archive")
    else:
        write_shards(folder, tensors, save_file if form == "safetensors shards" else torch.save)
    with parameters_on_disk() if on_disk else nullcontext():
        assert_loaded(folder, tensors)


def write_shards(folder: Path, tensors: Tensors, write: Callable[[Tensors, Path], None]) -> None:
    name = "model.safetensors" if write is save_file else "pytorch_model.bin"
    where = {each: f"part-{number % 2}{Path(name).suffix}" for number, each in enumerate(tensors)}
    for file in set(where.values()):
        write({each: tensors[each] for each in tensors if where[each] == file}, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 438007537\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (lambda f: pointer(f / "model.safetensors"), "model.safetensors is a git-lfs pointer"),
    "pointer of a tokenizer": (lambda f: pointer(f / "tokenizer.json"), "tokenizer.json is a git-lfs pointer"),
    "pointer of a configuration": (lambda f: pointer(f / "config.json"), "config.json is a git-lfs pointer"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is empty; fetch it again"),
    "page": (lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html>\n<html>404"), "is an error page that was"),
    "cut short": (lambda f: cut(f / "model.safetensors"), "it may be cut short: fetch it again"),
    "text": (lambda f: (f / "model.safetensors").write_text("Entry not found"), "it may be cut short: fetch it again"),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_a_file_that_is_not_what_its_name_says_is_named_as_what_it_is(what, folders, tmp_path):
    folder = changed(folders["gpt2"], tmp_path / "model", tensors_of(folders["gpt2"]))
    breaks, words = BROKEN[what]
    breaks(folder)
    assert_refused(folder, words)


INSTEAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "lightning": (lambda f: torch.save({}, f / "last.ckpt"), "last.ckpt is a checkpoint of a training program"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter (PEFT) and no network"),
    "gguf": (lambda f: (f / "q4_k_m.gguf").write_bytes(b"GGUF"), "q4_k_m.gguf is GGUF weights"),
    "tensorflow": (lambda f: (f / "tf_model.h5").write_bytes(b"HDF"), "tf_model.h5 is TensorFlow weights"),
    "flax": (lambda f: (f / "flax_model.msgpack").write_bytes(b"x"), "flax_model.msgpack is Flax weights"),
    "deepspeed": (lambda f: (f / "global_step100").mkdir(), "global_step100 is the shards of a DeepSpeed checkpoint"),
    "variant": (
        lambda f: save_file({}, f / "model.fp16.safetensors"),
        "model.fp16.safetensors is weights under another",
    ),
    "nothing": (lambda f: None, "has no weights, which are to be in model.safetensors"),
    "no tensors": (lambda f: torch.save([1], f / "pytorch_model.bin"), "is not a network's tensors by name; save a"),
    "code": (
        lambda f: torch.save({"a": Path()}, f / "pytorch_model.bin"),
        "holds more than tensors, which is not read",
    ),
    "noise": (lambda f: (f / "pytorch_model.bin").write_bytes(b"\1\2\3" * 99), "is not a file of torch.save"),
    "torch": (lambda f: torch.save({}, f / "model.safetensors"), "model.safetensors is a file of torch.save; name it"),
}


@pytest.mark.parametrize("what", list(INSTEAD))
def test_what_a_folder_holds_instead_of_weights_is_named(what, folders, tmp_path):
    folder = changed(folders["bert"], tmp_path / "model")
    makes, words = INSTEAD[what]
    makes(folder)
    assert_refused(folder, words)


def test_weights_inside_a_training_checkpoint_and_lost_shards_are_named(folders, tmp_path):
    tensors = tensors_of(folders["bert"])
    nested = changed(folders["bert"], tmp_path / "nested")
    torch.save({"epoch": 3, "state_dict": tensors}, nested / "pytorch_model.bin")
    assert_refused(nested, "its weights may stand under 'state_dict'")
    shards = changed(folders["bert"], tmp_path / "shards")
    write_shards(shards, tensors, save_file)
    (shards / "part-1.safetensors").unlink()
    assert_refused(shards, "names 2 files, of which 1 are not there, first part-1.safetensors")


def test_the_folder_that_is_meant_is_named(folders, tmp_path):
    """Of sentence-transformers, of one of our runs, of a trainer; and a file is none."""
    places = {"sentences": "0_Transformer", "run": "model", "trainer": "checkpoint-10"}
    for name, inside in places.items():
        shutil.copytree(folders["bert"], tmp_path / name / inside)
        if name == "sentences":
            modules = [{"idx": 0, "path": inside, "type": "sentence_transformers.models.Transformer"}]
            (tmp_path / name / "modules.json").write_text(json.dumps([*modules, {"idx": 1, "path": "1_Pooling"}]))
        if name == "run":
            shutil.copytree(folders["bert"], tmp_path / name / "starting")
        assert_refused(tmp_path / name, f"has no config.json; give {tmp_path / name / inside}")
    assert_refused(folders["bert"] / "model.safetensors", "is a file; give the folder that holds it")
    quantized = changed(folders["bert"], tmp_path / "q", {}, quantization_config={"quant_method": "gptq", "bits": 4})
    assert_refused(quantized, "is quantized")


def test_a_model_of_the_hub_is_looked_at_in_the_same_way(folders, tmp_path, monkeypatch):
    """Here it is in the hub's cache already."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tensors = tensors_of(folders["bert"])
    for name, form in (("good", "safetensors"), ("bin", "bin"), ("shards", "shards"), ("bad", "safetensors")):
        repository = tmp_path / f"models--someone--{name}"
        snapshot = repository / "snapshots" / ("a" * 40)
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("a" * 40)
        kept = {k: v for k, v in tensors.items() if name != "bad" or "layer.1" not in k}
        changed(folders["bert"], snapshot, kept if form == "safetensors" else None)
        if form == "bin":
            torch.save(tensors, snapshot / "pytorch_model.bin")
        if form == "shards":
            write_shards(snapshot, tensors, save_file)
        if name == "bad":
            for attempt in (look, load):
                with pytest.raises(UserError, match="lacks 16 of the "):
                    attempt(f"someone/{name}")
        else:
            assert_loaded(f"someone/{name}", tensors)


def test_bad_weights_are_refused_before_anything_is_prepared_or_started(folders, tmp_path):
    """By a run and by a sweep; and the directory is free afterwards."""
    tensors = {name: value for name, value in tensors_of(folders["bert"]).items() if "layer.1" not in name}
    changed(folders["bert"], tmp_path / "model", tensors)
    tree = tiny_config(write_labelled_csv(tmp_path / "texts.csv"))
    tree["model"] = {"name_or_path": str(tmp_path / "model")}
    tree["train"] |= {"validate_every": 5}
    tree["sweep"] = {"num_trials": 1, "space": {"meta.inner_lr": {"type": "choice", "values": [0.1]}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    said: list[str] = []
    for start in (
        lambda: pretrain(
            resolve(load_config(tmp_path / "run.yaml")), RunDirectory(tmp_path / "run"), resume=False, say=said.append
        ),
        lambda: run_trials(
            load_config(tmp_path / "run.yaml"), SweepDirectory(tmp_path / "run"), resume=False, say=said.append
        ),
    ):
        with pytest.raises(UserError, match="lacks 16 of the "):
            start()
        assert not (tmp_path / "run").exists()
        assert not ray.is_initialized()


def test_an_untouched_network_of_the_library_is_loaded_by_it_alike(folders):
    """The way through transformers' own door."""
    found = BertModel.from_pretrained(folders["bert"], add_pooling_layer=False).state_dict()
    ours = load(folders["bert"]).base.state_dict()
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[name], ours[name]) for name in found)
