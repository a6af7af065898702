"""The configuration: what is read, and what is refused in one clear line."""

from pathlib import Path

import pytest
import torch
import yaml

from distmeta.cluster.connect import check_workers_fit
from distmeta.config import Config, load_config, to_yaml, valid_keys
from distmeta.errors import UserError
from distmeta.pipeline import _choices
from distmeta.plan.calibrate import calibrate
from distmeta.rundir import RunDirectory
from distmeta.setup import resolve


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_printed_tree_is_read_back_and_explains_every_key(tmp_path):
    text = to_yaml(Config(), comments=True)
    assert load_config(write(tmp_path, text)) == Config()
    assert yaml.safe_load(text).keys() == Config.model_fields.keys()
    for section in Config.model_fields:
        for name, field in type(getattr(Config(), section)).model_fields.items():
            assert field.description, f"{section}.{name} has no line of meaning"
            assert all(f"# {line.strip()}\n" in text for line in field.description.splitlines())


def test_one_source_is_enough(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    config = load_config(write(tmp_path, "corpus: {sources: [a.txt]}"))
    assert config.corpus.sources == [str(tmp_path / "a.txt")]
    assert config.meta == Config().meta


def test_numbers_are_read_as_people_write_them(tmp_path):
    """Case G1: PyYAML takes 1e-3 for a string, 007 for 7 and no for False."""
    path = write(tmp_path, "meta: {inner_lr: 1e-3, outer_lr: 5E-4}\ntracking: {name: 007, group: no}\n")
    config = load_config(path, ["meta.weight_decay=1e-2", "tracking.project=12:30:45", "tracking.currency='1e5'"])
    assert (config.meta.inner_lr, config.meta.outer_lr, config.meta.weight_decay) == (0.001, 0.0005, 0.01)
    assert (config.tracking.name, config.tracking.group, config.tracking.project) == ("007", "no", "12:30:45")
    assert load_config(write(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("meta.iner_lr=0.1", ["meta.iner_lr", "unknown", "meta.inner_lr"]),
        ("meta.zero_stage=1", ["meta.zero_stage", "engine.zero_stage"]),
        ("metta.inner_lr=1", ["metta", "unknown", "meta?"]),
        ("meta.inner_lr=fast", ["meta.inner_lr", "number", "'fast'"]),
        ("meta.inner_lr=.nan", ["meta.inner_lr", "finite"]),
        ("meta.inner_lr", ["meta.inner_lr", "key=value"]),
        ("meta.inner_steps=2.5", ["meta.inner_steps", "integer", "2.5"]),
        ("train.seed=true", ["train.seed", "integer"]),
        ("engine.zero_stage=4", ["engine.zero_stage", "0, 1, 2 or 3"]),
        ("meta=5", ["meta", "5"]),
        ("meta.inner_lr.x=5", ["inner_lr"]),
        ("tasks.split_ratio=[0.9, 0.2, 0.2]", ["tasks.split_ratio", "sum to 1"]),
        ("tasks.max_examples=7", ["tasks.max_examples", "7", "10"]),
        ("tasks.max_classes=9", ["tasks.max_classes", "9", "n_way"]),
        ("train.num_workers=8", ["meta.meta_batch_size", "4", "train.num_workers", "8"]),
        ("meta.lm_warmup_steps=400", ["meta.lm_warmup_steps", "train.outer_steps"]),
        ("model.config={a: 1}", ["model.config.model_type"]),
        ("corpus.sources=[nothing/here.txt]", ["corpus.sources", "nothing/here.txt"]),
        ("corpus.sources=[]", ["corpus.sources"]),
        ("evaluate.n_way=many", ["evaluate.n_way", "all"]),
    ],
)
def test_mistakes_are_told_in_a_line(override, words):
    with pytest.raises(UserError) as refusal:
        load_config(None, [override])
    for word in words:
        assert word in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_every_mistake_is_told_at_once(tmp_path):
    with pytest.raises(UserError) as refusal:
        load_config(write(tmp_path, "meta: {iner_lr: 1, outer_lr: x}\nnothing: 3\n"))
    assert len(str(refusal.value).splitlines()) == 3


def test_a_key_that_is_set_by_mistake_is_not_printed():
    """Case E2: keys belong in the environment; a refusal must not put one into a log."""
    with pytest.raises(UserError) as refusal:
        load_config(None, ["tracking.api_key=0123456789abcdef"])
    assert "0123456789abcdef" not in str(refusal.value)


@pytest.mark.parametrize("override", ["train.storage=s3://AKIA:SECRET99@b/x", "corpus.sources=[s3://A:SECRET99@b/x]"])
def test_an_address_with_a_password_is_refused_and_not_shown(override):
    with pytest.raises(UserError, match="keys belong in the environment") as refusal:
        load_config(None, [override])
    assert "SECRET99" not in str(refusal.value)


def test_what_is_inside_a_wrong_value_is_not_shown():
    with pytest.raises(UserError) as refusal:
        load_config(None, ["tracking.wandb={api_key: SECRET99}"])
    assert "SECRET99" not in str(refusal.value)


def test_one_key_of_the_new_model_can_be_set(tmp_path):
    config = load_config(write(tmp_path, "model:\n  # pooling: mean\n"), ["model.config.hidden_size=64"])
    assert config.model.config == Config().model.config | {"hidden_size": 64}


def test_a_value_that_is_set_replaces_what_was_there(tmp_path):
    """Also where it is a mapping: of another model type the keys that the file has make no sense."""
    file = write(
        tmp_path, "model:\n  pooling: mean\n  config: {model_type: bert, intermediate_size: 64}\nmeta: {inner_lr: 3}\n"
    )
    gpt = {"model_type": "gpt2", "n_layer": 1}
    config = load_config(file, ["model.config={model_type: gpt2, n_layer: 1}", "meta.outer_lr=0.5"])
    assert (config.model.config, config.model.pooling) == (gpt, "mean")
    assert (config.meta.inner_lr, config.meta.outer_lr) == (3, 0.5)
    overrides = ["model.config={model_type: gpt2}", "model.config.n_layer=1"]
    assert load_config(file, overrides).model.config == load_config(None, overrides).model.config == gpt
    assert load_config(file, ["meta={outer_lr: 0.5}"]).meta.inner_lr == Config().meta.inner_lr
    space = "sweep.space={meta.outer_lr: {type: choice, values: [1]}}"
    assert list(load_config(file, [space]).sweep.space) == ["meta.outer_lr"]


@pytest.mark.parametrize("override", ["model.config={model_type: gpt2}", " model.config.hidden_size = 64"])
def test_a_new_model_that_is_set_beside_one_that_is_loaded_is_not_passed_over(tmp_path, override):
    file = write(tmp_path, "model: {name_or_path: some/hub-name}\n")
    with pytest.raises(UserError, match=r"^--set .*: is of a new model, and model.name_or_path loads some/hub-name"):
        load_config(file, [override])
    assert load_config(file, [override, "model.name_or_path=null"]).model.name_or_path is None


def test_another_type_of_the_default_model_is_not_given_a_bert_s_sizes():
    with pytest.raises(UserError, match=r"--set model.config.model_type: .*a bert's; set all of it"):
        load_config(None, ["model.config.model_type=gpt2"])


@pytest.mark.parametrize("text", ["model: 3", "model: [1]", "model: {config: x}"])
def test_a_key_of_what_is_no_section_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"--set model.config.hidden_size: .* is a value, not a section"):
        load_config(write(tmp_path, text), ["model.config.hidden_size=64"])


def test_text_with_a_mark_of_its_encoding_is_read(tmp_path):
    """As some editors and shells write it."""
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "run.yaml").write_text("tracking: {name: наука}\n", encoding=encoding)
        assert load_config(tmp_path / "run.yaml").tracking.name == "наука"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"meta:\n  inner_lr: \xff\n", "line 2 is no UTF-8 text"),
        (b"meta:\n  x: \x07\n", "line 2 is not valid YAML: it holds the character 0x0007"),
        (b"meta: &m\n  x: *m\n", "line 1 is not valid YAML: it nests too deeply"),
        (b"meta: " + b"[" * 5000, "line 1 is not valid YAML: it nests too deeply"),
        (b"- " * 3000, "is not valid YAML: it nests too deeply"),
        (b"meta:\n  x: !!python/name:os.system y\n", "line 2 is not valid YAML: could not determine a constructor"),
        (b"meta:\n  x: " + b"9" * 30, "line 2 is not valid YAML: '9.* is no whole number of 64 bits"),
    ],
)
def test_text_that_would_be_a_trap_for_the_reader_is_refused_by_line(tmp_path, content, said):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(UserError, match=rf"run\.yaml: ?{said}"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([r"meta.adapt='regex:^(\w|\w\w|\.)*[ !]$'"], "meta.adapt: .* takes too long"),
        (["meta.adapt=lora", r"model.lora_targets='^(\w|\w\w|\.)*[ !]$'"], "model.lora_targets: .* takes too long"),
        (["model.config.num_hidden_layers=1000000000"], "model.config.num_hidden_layers: .* 1000 at most"),
        (["model.config.num_labels=1000000000"], "model.config.num_labels: .* 10000 at most"),
        (["model.config.max_position_embeddings=6"], "model.config.max_position_embeddings: the model takes 6 tokens"),
        (["model.config={model_type: bertt}"], "model.config.model_type: bertt is no model type .* did you mean bert"),
    ],
)
def test_what_would_take_for_ever_or_make_no_network_is_refused_by_its_key(overrides: list[str], said: str):
    with pytest.raises(UserError, match=said):
        resolve(load_config(None, overrides))


def test_second_order_with_an_attention_that_has_no_second_derivative_is_refused():
    for algorithm in ("maml", "metasgd"):
        with pytest.raises(UserError, match=rf"model.attention: sdpa.*{algorithm}"):
            resolve(load_config(None, [f"meta.algorithm={algorithm}", "model.attention=sdpa"]))
    for override in ("meta.adapt=head", "meta.second_order=false", "meta.algorithm=anil"):
        resolve(load_config(None, ["meta.algorithm=maml", "model.attention=sdpa", override]))


@pytest.mark.parametrize(
    "model",
    [
        "{model_type: bloom, hidden_size: 32, n_layer: 1, n_head: 2}",
        "{model_type: mpnet, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}",
        "{model_type: deberta-v2, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}",
    ],
)
def test_a_model_without_sdpa_gets_eager_attention(model):
    config = resolve(load_config(None, [f"model.config={model}"]))
    assert config.model.attention == "eager"
    assert "eager attention (the model has no sdpa)" in _choices(config)
    with pytest.raises(UserError, match=r"model.attention: .* has no sdpa; use auto or eager"):
        resolve(load_config(None, [f"model.config={model}", "model.attention=sdpa"]))
    assert "sdpa attention;" in _choices(resolve(load_config(None)))


PARTITIONED = ("engine.weights=partitioned", "engine.zero_stage=3")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["meta.algorithm=mamml"], r"meta.algorithm: .*mamml is none of maml, fomaml"),
        (["meta.adapt=everything"], r"meta.adapt: .*none of all, lora"),
        (["meta.adapt=regex:("], r"meta.adapt: .*no regular expression"),
        (["meta.algorithm=reptile", "meta.adapt=head"], "leaves nothing that is kept"),
        (
            ["meta.algorithm=anil", "meta.adapt=lora"],
            "meta.adapt: anil adapts nothing in the network, .* it is lora; leave it",
        ),
        (["meta.algorithm=protonet", "meta.adapt=last_k"], "meta.adapt: protonet adapts nothing"),
        (["meta.algorithm=metaicl", "meta.adapt=lora"], "meta.adapt: metaicl adapts nothing"),
        (["meta.algorithm=fomaml", "meta.second_order=true"], "use maml"),
        (["meta.algorithm=metasgd", "meta.inner_rates=layer_step"], "use fixed"),
        (["engine.offload_optimizer=true"], "needs engine.zero_stage 1, 2 or 3, which is 0"),
        (["engine.weights=partitioned"], "needs engine.zero_stage 3, which is 0"),
        (
            [*PARTITIONED, "meta.algorithm=maml", "engine.precision=auto"],
            "needs engine.precision fp32, which is auto",
        ),
        ([*PARTITIONED, "meta.algorithm=maml", "meta.recompute=true"], "needs meta.recompute false, which is true"),
        ([*PARTITIONED, "engine.computation=bucketed"], "needs engine.computation auto or packed or plain"),
        ([*PARTITIONED, "engine.tasks_at_a_time=4"], "needs engine.tasks_at_a_time 1 or null, which is 4"),
        (["meta.algorithm=metaicl"], "needs a decoder, and bert is none"),
        (["meta.algorithm=protonet", "meta.second_order=true"], "meta.second_order: protonet has no inner loop"),
        (["meta.algorithm=fomaml", "meta.recompute=true"], "meta.recompute: fomaml"),
        (["meta.algorithm=metasgd", "meta.second_order=false", "meta.recompute=true"], "meta.recompute: metasgd"),
        (["meta.algorithm=leopard", "meta.recompute=true"], "meta.recompute: leopard"),
        (["meta.algorithm=reptile", "meta.inner_rates=layer_step"], "meta.inner_rates: reptile learns no rates"),
        (["meta.algorithm=protonet", "meta.inner_rates=layer_step"], "meta.inner_rates: protonet learns no rates"),
        (["meta.algorithm=protonet", "meta.multi_step_loss=0.5"], "meta.multi_step_loss: protonet"),
        (["meta.algorithm=multitask"], "meta.algorithm: multitask: has a head over the classes of labelled sets"),
        (["evaluate.multitask_baseline=true"], "evaluate.multitask_baseline: has a head over"),
        (
            ["meta.algorithm=multitask", "evaluate.multitask_baseline=true", "tasks.label_column=intent"],
            "evaluate.multitask_baseline: meta.algorithm is multitask already",
        ),
        (["meta.algorithm=multitask", "meta.distance=cosine"], "meta.distance: is protonet's alone"),
        (["meta.temperature=2.0"], "meta.temperature: is protonet's alone, and meta.algorithm is fomaml"),
        (["meta.learn_temperature=true"], "meta.learn_temperature: is protonet's alone"),
        (["meta.distance=cosine"], "meta.distance: is protonet's alone"),
        (["meta.keep_similarity=1"], "meta.keep_similarity: is of protonet and multitask"),
        (
            ["engine.tasks_at_a_time=4", "engine.computation=plain"],
            "engine.tasks_at_a_time: engine.computation plain takes one",
        ),
        (["engine.tasks_at_a_time=4", "engine.computation=bucketed"], "with engine.computation bucketed none go side"),
        (["engine.tasks_at_a_time=4", "meta.algorithm=reptile"], "with meta.algorithm reptile none go side by side"),
        (["engine.tasks_at_a_time=4", "meta.algorithm=metaicl"], "with meta.algorithm metaicl none go side by side"),
        (
            ["engine.tasks_at_a_time=4", "meta.inner_clipping=1.0", "train.cpus_per_worker=2"],
            "with meta.inner_clipping 1.0 none go side by side, and a worker takes 2 at a time",
        ),
        (["engine.tasks_at_a_time=4", "model.config.hidden_dropout_prob=0.1"], "engine.tasks_at_a_time: with dropout"),
        (["meta.adapt=regex:nothing"], "meta.adapt: regex:nothing finds no parameter"),
        (["meta.adapt=last_k", "meta.last_k=3"], "meta.last_k: the model has 2 layers, not 3"),
        (["meta.freeze_lowest=2"], "meta.freeze_lowest: 2 layers of 2"),
        (["meta.adapt=lora", "model.lora_targets=("], "model.lora_targets: .*no regular expression"),
        (["meta.adapt=lora", "model.lora_targets=nothing"], "model.lora_targets: nothing finds no linear layer"),
    ],
)
def test_what_the_core_cannot_do_is_refused(overrides: list[str], said: str):
    with pytest.raises(UserError, match=said):
        resolve(load_config(None, overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["meta.algorithm=protonet", "meta.distance=cosine", "meta.temperature=0.5", "meta.learn_temperature=true"],
        ["meta.algorithm=maml", "meta.recompute=true", "meta.inner_rates=layer_step", "meta.multi_step_loss=0.5"],
        ["meta.algorithm=leopard", "meta.second_order=true", "meta.recompute=true"],
        ["meta.algorithm=reptile", "engine.tasks_at_a_time=1", "engine.computation=plain", "meta.second_order=false"],
        ["meta.algorithm=anil", "meta.adapt=head"],
        ["meta.algorithm=protonet", "meta.adapt=all"],
        ["engine.tasks_at_a_time=4"],
        ["engine.tasks_at_a_time=2", "meta.algorithm=reptile", "train.cpus_per_worker=2"],
        ["engine.tasks_at_a_time=4", "meta.algorithm=protonet"],
        [*PARTITIONED, "meta.algorithm=maml", "meta.second_order=false", "engine.precision=bf16"],
        [*PARTITIONED, "engine.computation=plain", "engine.tasks_at_a_time=1"],
    ],
)
def test_what_has_an_effect_is_not_refused(overrides: list[str]):
    resolve(load_config(None, overrides))


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch):
    config = load_config(None, ["engine.device=cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"engine.device: cuda needs a GPU"):
        check_workers_fit(config)
    with pytest.raises(UserError, match=r"engine.device: cuda needs a GPU.*--rate"):
        calibrate(config, RunDirectory(Path("nowhere")))
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    with pytest.raises(UserError, match="RAY_ADDRESS: somewhere is not HOST:PORT"):  # whose GPUs are counted there
        check_workers_fit(config)


def test_targets_of_adapters_are_looked_for_by_the_pattern_that_is_set():
    """GPT-NeoX has no projections of the usual names."""
    neox = "model.config={model_type: gpt_neox, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
    with pytest.raises(UserError, match="lora finds no query and value projections"):
        resolve(load_config(None, [neox, "meta.adapt=lora"]))
    resolve(load_config(None, [neox, "meta.adapt=lora", "model.lora_targets=query_key_value"]))


@pytest.mark.parametrize(
    "text", ["meta: [", "meta: {{x}}", "meta: {inner_lr: 1}\nmeta: {inner_lr: 2}", "- a", "meta: {a: 1, a: 2}"]
)
def test_text_that_is_no_configuration_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"run\.yaml"):
        load_config(write(tmp_path, text))


def test_paths_are_read_from_where_they_are_written(tmp_path, monkeypatch):
    """Case B3: workers sit in another folder."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    (folder / "data").mkdir(parents=True)
    elsewhere.mkdir()
    for name in ("data/a.txt", "data/b[1].txt", "train", "valid", "test"):
        (folder / name).write_text("x")
    (elsewhere / "b.txt").write_text("x")
    monkeypatch.chdir(elsewhere)
    files = "{train: train, valid: valid, test: test}"
    (folder / "saved").mkdir()
    (elsewhere / "some").mkdir()
    (elsewhere / "some" / "hub-name").mkdir()
    path = write(
        folder,
        "corpus: {sources: [data/*.txt, {path: data}, huggingface:saved, 'data/b[1].txt', data/**/*.txt]}\n"
        f"tasks: {{label_column: y, split_files: {files}}}\n"
        "model: {name_or_path: some/hub-name}\n",
    )
    config = load_config(path)
    assert config.corpus.sources[0] == str(folder / "data/*.txt")
    assert config.corpus.sources[1].path == str(folder / "data")
    assert config.corpus.sources[2] == f"huggingface:{folder / 'saved'}"
    assert config.tasks.split_files.test == str(folder / "test")
    assert config.model.name_or_path == "some/hub-name"
    assert load_config(path, ["corpus.sources=[b.txt]"]).corpus.sources == [str(elsewhere / "b.txt")]


def test_keys_that_others_look_for_are_there():
    expected = """
    corpus.sources tokenizer.vocab_size tasks.n_way tasks.k_shot tasks.query_per_class tasks.text_column
    tasks.label_column tasks.split_files tasks.split_ratio model.name_or_path model.config meta.algorithm meta.adapt
    meta.inner_lr meta.inner_steps meta.outer_lr meta.meta_batch_size meta.lm_weight meta.lm_warmup_steps
    engine.zero_stage engine.precision train.num_workers train.outer_steps train.checkpoint_every train.validate_every
    train.seed evaluate.episodes evaluate.n_way evaluate.k_shot
    """
    assert set(expected.split()) <= set(valid_keys())
