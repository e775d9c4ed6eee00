"""Thousands of damaged and hostile files: each is refused with one clear line, and none is used in part.

A tenth of them by default, and all with `pytest --hypothesis-profile=full`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, examples, run_here
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import gan_dist
from gan_dist.checkpoint.find import FILES, config_path, find_checkpoint, read_facts, verify
from gan_dist.checkpoint.manifest import check_file
from gan_dist.checkpoint.restore import MOMENTS, _read_tensors, load_network, restore
from gan_dist.checkpoint.state import State
from gan_dist.data import DataInfo
from gan_dist.data.datasets import describe
from gan_dist.data.images import BrokenImage, read_image
from gan_dist.errors import UserError
from gan_dist.models import names as names_of_models
from gan_dist.parallel.distributed import Distributed
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Config, walk_settings
from gan_dist.wiring.checks import check_parts
from gan_dist.wiring.data import source_of
from gan_dist.wiring.networks import make_state, optimizer_names
from gan_dist.wiring.parts import check_names, named_parts

many = settings(max_examples=examples(2000), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
ALL_FILES = (*FILES, "manifest.json")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    small = ["model.g_widths=[4]", "model.d_widths=[4]", "model.z_dim=3", "train.kimg=0.1", "run.dir=run"]
    assert run_here(folder, "train", *TINY, *small).returncode == 0
    return folder / "run"


@pytest.fixture(scope="module")
def content(run_dir: Path) -> dict[str, bytes]:
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    return {name: (checkpoint / name).read_bytes() for name in ALL_FILES}


@pytest.fixture(scope="module")
def dist() -> Distributed:
    return Distributed("fp32", cpu=True)


@pytest.fixture(scope="module")
def state(dist: Distributed) -> State:
    config = load_config(None, ["model.g_widths=[4]", "model.d_widths=[4]", "model.z_dim=3"])
    return make_state(config, DataInfo((1, 8, 8), 10, 1797), dist)


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    checkpoint = folder / "run/checkpoints/000000000128"
    shutil.rmtree(folder / "run", ignore_errors=True)
    checkpoint.mkdir(parents=True)
    for name, data in files.items():
        (checkpoint / name).write_bytes(data)
    return checkpoint


def _assert_one_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) > 20


hostile_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9) | st.sampled_from([*FILES, "size", "sha256"]), inner, max_size=4)
    ),
)
hostile_value = hostile_json | st.sampled_from([2**62, 10**12, [10**12], [2**62, 1], -1, "../x", "dcgan", "_layers"])
places = st.floats(0, 1, exclude_max=True)
bits = st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=5)
some_bytes = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=9)
KEYS = [name for name, *_ in walk_settings()]
damage = st.one_of(
    st.tuples(st.just("cut"), st.sampled_from(ALL_FILES), places),
    st.tuples(st.just("flip"), st.sampled_from(ALL_FILES), bits),
    st.tuples(st.just("swap"), st.sampled_from(ALL_FILES), st.sampled_from(ALL_FILES)),
    st.tuples(st.just("remove"), st.sampled_from(ALL_FILES), st.none()),
    st.tuples(st.just("append"), st.sampled_from(ALL_FILES), st.binary(min_size=1, max_size=50)),
    st.tuples(st.just("link"), st.sampled_from(ALL_FILES), st.none()),
    st.tuples(st.just("manifest"), st.just("manifest.json"), hostile_json),
)  # fmt: skip


def _damaged(content: dict[str, bytes], kind: str, name: str, how: Any) -> dict[str, bytes]:
    files = dict(content)
    data = bytearray(files[name])
    if kind == "cut":
        files[name] = bytes(data[: int(how * len(data))])
    elif kind == "flip":
        for place, bit in how:
            data[int(place * len(data))] ^= 1 << bit
        files[name] = bytes(data)
    elif kind == "swap":
        files[name], files[how] = files[how], files[name]
    elif kind == "remove":
        del files[name]
    elif kind == "append":
        files[name] = bytes(data) + how
    elif kind == "manifest":
        files[name] = json.dumps(how).encode()
    return files


@pytest.mark.slow
@many
@given(what=damage)
def test_damaged_checkpoint_is_never_taken(what: Any, content: dict[str, bytes], tmp_path_factory: Any) -> None:
    files = _damaged(content, *what)
    folder = _folder(tmp_path_factory)
    checkpoint = _write(folder, files)
    if what[0] == "link":
        (folder / "elsewhere").write_bytes(content[what[1]])
        (checkpoint / what[1]).unlink()
        (checkpoint / what[1]).symlink_to(folder / "elsewhere")
    else:
        assume(files != content)
        if what[1] == "manifest.json" and what[0] != "swap":  # its blanks, or a name in it that nobody asks for
            assume(_entries(files) != _entries(content))
    for attempt in (verify, lambda path: gan_dist.load_generator(path.parent.parent)):
        with pytest.raises(UserError) as caught:
            attempt(checkpoint)
        _assert_one_line(caught.value)


def _folder(factory: pytest.TempPathFactory) -> Path:
    """One for all examples."""
    folder = factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    return folder


def _entries(files: dict[str, bytes]) -> Any:
    try:
        manifest = json.loads(files["manifest.json"])
        return {name: (manifest[name]["size"], manifest[name]["sha256"]) for name in FILES}
    except (ValueError, KeyError, TypeError):
        return None


FACTS = ("nimg", "metrics", "metrics_nimg", "retries", "scalers", "image_shape", "num_classes", "num_images",
         "protocol", "series", "paths")  # fmt: skip
hostile = st.one_of(
    st.tuples(st.just("state.json"), st.dictionaries(st.sampled_from(FACTS), hostile_json, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(FILES), st.binary(max_size=200)),
    st.tuples(st.sampled_from(FILES[:5]), some_bytes),
    st.tuples(st.sampled_from(FILES[:5]), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("config.yaml"), st.dictionaries(st.sampled_from(KEYS), hostile_value, min_size=1, max_size=2)),
)  # fmt: skip


@pytest.mark.slow
@settings(many, max_examples=examples(1000))
@given(what=hostile)
@example(what=("opt_D.safetensors", [(0.3828125, 32)]))  # a moment by another name
@example(what=("config.yaml", {"model.g_args": {"foo": 1}}))
@example(what=("config.yaml", {"model.name": "r3gan", "model.g_args": {"blocks": 10**9}, "model.g_widths": []}))
def test_hostile_checkpoint_with_its_manifest(
    what: Any, content: dict[str, bytes], state: State, tmp_path_factory: Any
) -> None:
    """Its maker computed the hashes too: it may be taken for what it says, and nothing worse happens."""
    name, how = what
    files = dict(content)
    if isinstance(how, dict) and name == "state.json":
        files[name] = json.dumps({**json.loads(files[name]), **how}).encode()
    elif isinstance(how, dict):
        config = yaml.safe_load(files[name])
        for key, value in how.items():
            section, _, setting = key.rpartition(".")
            if section in config:
                config[section][setting] = value
            else:
                config[key] = value
        files[name] = yaml.safe_dump(config).encode(errors="replace")
    elif isinstance(how, bytes):
        files[name] = how
    elif isinstance(how, int):  # the length of the header, which a reader might believe
        files[name] = how.to_bytes(8, "little") + files[name][8:]
    else:
        data = bytearray(files[name])
        for place, byte in how:
            data[int(place * min(len(data), 400))] = byte
        files[name] = bytes(data)
    files["manifest.json"] = json.dumps(
        {n: {"size": len(files[n]), "sha256": hashlib.sha256(files[n]).hexdigest()} for n in FILES}
    ).encode()
    checkpoint = _write(_folder(tmp_path_factory), files)
    for attempt in (lambda: gan_dist.load_generator(checkpoint.parent.parent), lambda: restore(checkpoint, state)):
        try:
            attempt()
        except UserError as error:
            _assert_one_line(error)


def test_size_that_a_file_claims_is_not_believed(content: dict[str, bytes], state: State, tmp_path: Path) -> None:
    """A sparse file may have any size: it is hashed piece by piece, and read only if it can hold what it should."""
    checkpoint = _write(tmp_path, content)
    sizes = {"G.safetensors": 2**26, "opt_G.safetensors": 2**40, "state.json": 2**41, "config.yaml": 2**42}
    for name, size in sizes.items():
        os.truncate(checkpoint / name, size)
    zeros = hashlib.sha256(content["G.safetensors"] + bytes(2**26 - len(content["G.safetensors"]))).hexdigest()
    entries = json.loads(content["manifest.json"]) | {name: {"size": size} for name, size in sizes.items()}
    entries["G.safetensors"]["sha256"] = zeros
    (checkpoint / "manifest.json").write_text(json.dumps(entries))
    tracemalloc.start()
    check_file(checkpoint, "G.safetensors")
    for attempt in (
        lambda: load_network(checkpoint, "G", state.G),
        lambda: _read_tensors(checkpoint, "opt_G", MOMENTS * list(state.G.parameters())),
        lambda: read_facts(checkpoint),
        lambda: config_path(checkpoint),
    ):
        with pytest.raises(UserError, match="bytes are more than"):
            attempt()
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


RUN_FILES = ("config.yaml", "metrics.jsonl", "log.txt", ".owner", ".lock", ".starts", "wandb_id.txt", "plot.png")
RUN_FILES += ("evaluations.jsonl", "samples", "samples/real-000000.000.png", "samples/new", "checkpoints")
RUN_FILES += ("checkpoints/x", "checkpoints/000000000999", "checkpoints/.old-000000000999", "generated")
CHECKPOINT = "checkpoints/000000000128"
contents = st.binary(max_size=200) | hostile_json.map(lambda value: json.dumps(value).encode()) | st.integers(0, 2**41)
kinds_of_files = st.sampled_from(["directory", "FIFO", "socket", "link", "hard link", "nothing"])


def _put(path: Path, what: Any) -> None:
    """Put a file with some content, a file of some size, or something else than a file in the place of a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif isinstance(what, int):
        path.touch()
        os.truncate(path, what)
    elif what == "directory":
        (path / "x").mkdir(parents=True)
    elif what == "FIFO":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif what == "link":
        path.symlink_to("/dev/zero")
    elif what == "hard link":
        os.link(path.parents[len(path.parents) - 1 - path.parts.index("fuzzed")] / "outside", path)


def _wait_no_longer(*_: object) -> None:
    raise TimeoutError("a command has waited for 60 s")


@pytest.mark.slow
@settings(many, max_examples=examples(100))
@given(
    name=st.sampled_from(RUN_FILES) | st.sampled_from(ALL_FILES).map(lambda name: f"{CHECKPOINT}/{name}"),
    what=contents | kinds_of_files,
    command=st.sampled_from(["train", "train", "sample"]),
)
@example(name=".owner", what=b"host 99999999999999999999", command="train")
@example(name="log.txt", what="hard link", command="train")
@example(name="checkpoints", what="FIFO", command="sample")
def test_any_file_of_a_run_directory_may_be_anything(
    name: str, what: Any, command: str, run_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes, sizes and types: a command goes on, or ends with one line; it never waits, and writes only in the run."""
    folder = _folder(tmp_path_factory)
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(run_dir, folder / "run")
    (folder / "outside").write_bytes(b"outside")
    _put(folder / "run" / name, what)
    small = ["model.g_widths=[4]", "model.d_widths=[4]", "model.z_dim=3", "train.kimg=0.2", "log.every_kimg=0.1"]
    arguments = ["train", *TINY, *small, "run.dir=run", "resume=auto"] if command == "train" else ["sample", "run"]
    before = signal.signal(signal.SIGALRM, _wait_no_longer)
    signal.alarm(60)
    try:
        result = run_here(folder, *arguments)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert result.returncode in (0, 1, 2), result.stderr
    assert "Traceback" not in result.stderr
    assert (folder / "outside").read_bytes() == b"outside"
    if result.returncode:
        (line,) = result.stderr.splitlines()
        assert line.startswith("gan-dist: error: ")
    elif command == "train":
        verify(max(path for path in (folder / "run/checkpoints").iterdir() if path.name.startswith("0")))


names = st.sampled_from(KEYS) | st.text(max_size=12)
values = st.one_of(
    st.text(max_size=20), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.sampled_from([
        "../../elsewhere", "/etc/passwd", "${oc.env:HOME}", "${train.kimg}", "${..}", "${", "!!python/name:os.system",
        "1e400", ".inf", "0x10", "2**99", "???", "on", "~", "- - -", "{a: *b}", "&a [*a]", "\x00", "é" * 50,
    ]),
)  # fmt: skip
sizes = st.sampled_from(
    [-1, 0, 1, 3, 16, 4097, 2**20, 2**62, 10**30, 0.5, 1e306, True, "x", [], [0], [4] * 3, [2**20], [2**62]]
)
arguments = ["blocks", "group_size", "attention", "tanh", "batch_norm", "betas", "eps", "fused", "foreach", "lr", "x"]
odd = st.dictionaries(st.sampled_from(arguments), sizes, max_size=2)
models_and_optimizers = st.fixed_dictionaries({
    "data": st.just({"image_size": "16"}),
    "model": st.fixed_dictionaries(
        {"name": st.sampled_from(sorted({*names_of_models()} - {"sngan"}))},  # whose norms take half a second
        optional={"z_dim": sizes, "g_widths": sizes, "d_widths": sizes, "g_args": odd, "d_args": odd},
    ),
    "optim": st.fixed_dictionaries({
        "D": st.fixed_dictionaries({"name": st.sampled_from(optimizer_names()), "args": odd}),
    }),
    "train": st.fixed_dictionaries({}, optional={"kimg": sizes, "batch_size": sizes, "micro_batch_size": sizes}),
})  # fmt: skip
documents = st.one_of(
    models_and_optimizers.map(json.dumps),
    st.dictionaries(names, values, max_size=4).map(lambda d: json.dumps(d)),
    st.dictionaries(names, values, max_size=4).map(
        lambda d: "".join(f"{k.partition('.')[0]}: {{{k.partition('.')[2]}: {v}}}\n" for k, v in d.items())
    ),
    st.text(max_size=200),
    st.binary(max_size=200),
    st.integers(1, 200).map(lambda n: "[" * n),
    st.integers(1, 200).map(lambda n: "train: " + "{a: " * n + "1" + "}" * n),
    st.sampled_from([
        "train: !!python/object/apply:os.system ['touch executed']\n",
        "train: !!python/name:os.system\n",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "train: {kimg: !!binary aGVsbG8=}\n",
        "run: {dir: /tmp/elsewhere}\n", "run: {dir: a/../../b}\n", "run: {name: ../x}\n", "run: {name: a/b}\n",
        "model: {name: ../../os}\n", "model: {name: _layers}\n", "optim: {G: {name: os.system}}\n",
    ]),
)  # fmt: skip


@pytest.mark.slow
@many
@given(document=documents)
def test_hostile_config_gets_one_line(document: str | bytes, dist: Distributed, tmp_path_factory: Any) -> None:
    path = _folder(tmp_path_factory) / "config.yaml"
    path.write_bytes(document if isinstance(document, bytes) else document.encode(errors="surrogatepass"))
    try:
        config = load_config(path)
    except UserError as error:
        _assert_one_line(error)
    else:
        assert isinstance(config, Config)
        assert not Path(config.run.dir).is_absolute()
        assert ".." not in Path(config.run.dir).parts
        assert "/" not in config.run.name
        try:
            check_names(named_parts(config))
            check_parts(config, describe(source_of(config.data)), dist)
        except UserError as error:
            _assert_one_line(error)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "document",
    [
        "run: {dir: /tmp/elsewhere}",
        "run: {dir: a/../../b}",
        "run: {name: ../x}",
        "a: &a [x]\nb: *a",
        "train: !!python/name:os.system",
        "x: " + "[" * 2000,
    ],
)
def test_these_configs_are_refused(document: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(document)
    with pytest.raises(UserError):
        load_config(tmp_path / "a.yaml")


FORMATS = ("png", "jpeg", "gif", "bmp", "tiff", "webp")


@settings(many, max_examples=examples(600))
@given(
    kind=st.sampled_from(FORMATS),
    changes=st.one_of(places, st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=20)),
)
def test_damaged_image_is_read_or_named(kind: str, changes: Any, tmp_path_factory: Any) -> None:
    folder = _folder(tmp_path_factory)
    whole = folder / f"whole.{kind}"
    if not whole.exists():
        Image.linear_gradient("L").resize((40, 30)).convert("P" if kind == "gif" else "RGB").save(whole)
    data = bytearray(whole.read_bytes())
    if isinstance(changes, float):
        data = data[: int(changes * len(data))]
    else:
        for place, byte in changes:
            data[int(place * len(data))] = byte
    path = folder / f"damaged.{kind}"
    path.write_bytes(data)
    try:
        x = read_image(path, (3, 16, 16)).pixels
        assert x.shape == (3, 16, 16)
        assert x.dtype == torch.uint8
    except BrokenImage as error:
        _assert_one_line(error)


@pytest.mark.parametrize("size", [65_500, 10_000])
def test_huge_image_is_refused_before_it_is_decoded(size: int, tmp_path: Path) -> None:
    """A PNG of a hundred bytes that claims to be huge: nothing is allocated for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(BrokenImage, match=r"bomb\.png.*pixels"):
        read_image(tmp_path / "bomb.png", (3, 8, 8))


class _Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", ALL_FILES)
def test_pickle_under_any_name_is_never_loaded(
    name: str, protocol: int, content: dict[str, bytes], state: State, tmp_path: Path
) -> None:
    """With a manifest that fits it, too."""
    witness = tmp_path / "executed"
    files = {**content, name: pickle.dumps(_Malicious(witness), protocol)}
    for forged in (False, True):
        if forged and name != "manifest.json":
            files["manifest.json"] = json.dumps(
                {n: {"size": len(files[n]), "sha256": hashlib.sha256(files[n]).hexdigest()} for n in FILES}
            ).encode()
        checkpoint = _write(tmp_path, files)

        def use(checkpoint: Path = checkpoint) -> None:
            restore(find_checkpoint(tmp_path / "run"), state)
            load_config(checkpoint / "config.yaml")

        with pytest.raises(UserError):
            use()
    assert not witness.exists()
