"""Parts of users: each kind is registered, named by a setting, trained with, and missed when it is not there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY
from forks import Forked
from launched import launched
from program import Program
from safetensors.torch import load_file

import gan_dist
from gan_dist import parts
from gan_dist.engine.callbacks.users import Context
from gan_dist.errors import ConfigError, UserError
from gan_dist.game.losses import LOSSES, Loss
from gan_dist.parts import Table, load_plugins

PLUGIN = "plugins=[my_parts]"
ALL = [
    PLUGIN, "data.name=stripes", "data.args.count=50", "model.name=tiny", "model.g_args.gain=0.5", "model.z_dim=8",
    "model.g_widths=[]", "model.d_widths=[]", "loss.name=margin", "loss.args.width=0.5", "loss.r1_gamma=1",
    "loss.penalties.consistency.weight=0.3", "loss.penalty_interval=2", "train.augment=[translation,brighter]",
    "train.augment_args.brighter.by=0.2", "train.batch_size=16", "callbacks.count.every_kimg=0.1",
    "metrics.extractor=pixels", "metrics.args.scale=2", "metrics.extra.gap.power=2", "metrics.num_images=64",
    "metrics.every_kimg=0.2", "tracking.extra.lines.name=mine.txt", "log.every_kimg=0.1", "checkpoint.every_kimg=0.2",
    "sample.every_kimg=0.4", "resume=auto",
]  # fmt: skip


@pytest.fixture
def plugged(program: Program) -> Program:
    """A directory with a module of parts, in which commands run in processes of their own.

    In this process the parts would stay registered, and other tests would see them.
    """
    shutil.copy(ROOT / "tests/users_parts.py", program.cwd / "my_parts.py")
    return program


def _train(program: Program, *words: str) -> str:
    result = program.process("train", *program._tiny([*ALL, *words]))
    assert result.returncode == 0, result.stderr
    return result.stdout


def _facts(run: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads((max((run / "checkpoints").glob("0*")) / "state.json").read_text())
    return facts


@pytest.mark.slow
def test_all_kinds_of_parts_train_and_resume_exactly(plugged: Program) -> None:
    _train(plugged, "run.dir=whole", "train.kimg=0.4")
    _train(plugged, "run.dir=parted", "train.kimg=0.2")
    _train(plugged, "run.dir=parted", "train.kimg=0.4")
    whole, parted = plugged.cwd / "whole", plugged.cwd / "parted"
    for name in ("G", "D", "G_ema", "opt_D"):
        ends = [load_file(max((run / "checkpoints").glob("0*")) / f"{name}.safetensors") for run in (whole, parted)]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0]), name
    assert _facts(whole)["callbacks"] == _facts(parted)["callbacks"] == {"count": {"calls": 5}}
    metrics = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in metrics for name in line}
    assert {"calls", "consistency", "gap_pixels", "fid_pixels"} <= names
    mine = (whole / "mine.txt").read_text().splitlines()
    assert "96 calls known" not in mine
    assert "112 calls known" in mine
    assert mine[-1] == "finished"
    protocol = next(line["protocol"] for line in metrics if "protocol" in line)
    assert protocol["extra"]["gap"].startswith("my_parts ")
    assert protocol["extractor"] == "pixels"

    refused = plugged.process("train", "run.dir=whole", "resume=latest", "train.kimg=0.6")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "this run has it from the module my_parts: add plugins=[my_parts]" in refused.stderr
    assert "add plugins=[my_parts]" in plugged.process("sample", "whole").stderr
    sampled = plugged.process("sample", "whole", PLUGIN, "--n", "4")
    assert sampled.returncode == 0, sampled.stderr
    evaluated = plugged.process("evaluate", "whole", PLUGIN, "--n", "64")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "gap_pixels" in evaluated.stdout

    with (plugged.cwd / "my_parts.py").open("a") as file:
        file.write("# another line\n")
    assert "data.name=stripes was my_parts" in _train(plugged, "run.dir=whole", "train.kimg=0.5")


@pytest.mark.slow
def test_all_commands_take_plugins(plugged: Program) -> None:
    words = [word for word in ALL if word != "resume=auto"]
    planned = plugged.process("plan", *words)
    assert planned.returncode == 0, planned.stderr
    fetched = plugged.process("prefetch", *words)
    assert fetched.returncode == 0, fetched.stderr
    assert "50 of 50 images" in fetched.stdout
    told = plugged.process("train", PLUGIN, "--help").stdout
    assert "loss           margin (my_parts)" in told


@pytest.mark.slow
def test_two_processes_train_as_one_and_call_the_callback_on_both(plugged: Program) -> None:
    words = [*ALL, "train.precision=fp64", "train.kimg=0.2", "metrics.every_kimg=0"]
    ranks = plugged.ranks(*[["train", *plugged._tiny([*words, "run.dir=two"])] for _ in range(2)])
    outputs = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert "main: True, call 3" in outputs[0][0]
    assert plugged.process("train", *plugged._tiny([*words, "run.dir=one"])).returncode == 0
    one, two = (plugged.cwd / name / "checkpoints/000000000208" for name in ("one", "two"))
    for name in ("G", "D"):
        a, b = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-9, atol=1e-12)

    there = plugged.cwd / "there"
    there.mkdir()
    (there / "my_parts.py").write_text((plugged.cwd / "my_parts.py").read_text() + "# another line\n")
    first = f"import os; os.environ['RANK'] == '1' and os.chdir({str(there)!r})"
    unlike = [
        plugged.start("train", *plugged._tiny([*words, f"run.dir={plugged.cwd / 'unlike'}"]), env=place, first=first)
        for place in launched(2)
    ]
    errors = [rank.communicate()[1] for rank in unlike]
    assert [rank.returncode for rank in unlike] == [2, 2], errors
    assert "the processes of this run differ: rank 1 has data.name=stripes=my_parts" in errors[0]


@pytest.mark.slow
def test_a_callback_that_raises_ends_the_run_and_names_the_checkpoint(plugged: Program) -> None:
    shipped = ["model.g_name=mlp", "model.g_args={}", "model.d_args.drop=0.1"]  # with a user's D
    words = [*shipped, "callbacks.count.fail_at=300", "run.dir=run", "train.kimg=1", "metrics.every_kimg=0"]
    result = plugged.process("train", *plugged._tiny([*ALL, *words]))
    assert result.returncode == 1
    assert "ZeroDivisionError: too many" in result.stderr, "the user's own traceback is shown"
    assert "the callback count failed at 0.304 kimg" in result.stderr
    assert "the run can go on from run/checkpoints/000000000304" in result.stdout
    assert "run: mlp against tiny on 50 images of 1x8x8" in result.stdout
    assert "D has layers that draw random numbers of their own (Dropout)" in result.stdout
    again = [*shipped, "metrics.every_kimg=0", "callbacks.count.fail_at=0"]
    _train(plugged, "run.dir=run", "train.kimg=0.4", *again)


MISTAKES = {
    "an unknown argument": (["loss.args.widht=1"], "loss.args: unknown argument widht; choose one of width"),
    "an argument of another type": (["loss.args.width=wide"], "loss.args: width=wide must be a number"),
    "an argument of one of our own": (["loss.name=hinge"], "loss.args: unknown argument width; hinge has none"),
    "a penalty that is not there": (["loss.penalties.none.weight=1"], "loss.penalties=none: choose one of consistency"),
    "arguments of an augmentation that is not used": (["train.augment=[]"], "train.augment_args: brighter is not in"),
    "a size that the architecture refuses": (
        ["data.image_size=96"],
        "data.image_size=96x96: tiny makes at most",
    ),
    "no module of this name": (
        ["plugins=[nothing_here]"],
        "[nothing_here]: cannot be imported: ModuleNotFound",
    ),
    "a module with a mistake": (["plugins=[broken]"], "plugins=[broken]: cannot be imported: ZeroDivisionError"),
    "a file in place of a module": (["plugins=[my_parts.py]"], "write plugins=[my_parts], without .py"),
    "a text in place of a list": (["plugins=my_parts"], "must be a list of names, for example [first,second]"),
    "logits of another shape": (
        ["model.d_name=column"],
        "column: D(x, y) must have the shape (4,) for 4 images",
    ),
    "images of another shape": (["model.g_name=flat"], "flat: G(z, y) must have the shape (4, 1, 8, 8) for 4 images"),
    "a missing attribute": (["model.g_name=nameless", "model.g_args={}"], "nameless: G.z_dim must be 8, and is None"),
    "D alone": (["model.name=column"], "model.name=column has a discriminator only: set model.d_name=column"),
    "a loss of the whole batch": (["loss.name=mean", "loss.args={}"], "loss.name=mean: D's loss must be one value per"),
    "an argument that is not keyword-only": (
        ["loss.name=mean"],
        "width is not keyword-only in mean: put a * before",
    ),
    "an own part of the same name": (["plugins=[rival]"], "gan_dist itself has a loss of the name hinge already"),
    "another module's part of the same name": (["plugins=[my_parts,second]"], "the module my_parts has a loss of the"),
}


@pytest.mark.slow
def test_mistakes_get_one_line(plugged: Program) -> None:
    (plugged.cwd / "broken.py").write_text("1 / 0\n")
    register = "import gan_dist\n@gan_dist.register_loss('{}')\ndef loss(): ...\n"
    (plugged.cwd / "rival.py").write_text(register.format("hinge"))
    (plugged.cwd / "second.py").write_text(register.format("margin"))
    (plugged.cwd / "odd.py").write_text(_ODD)
    (plugged.cwd / "mine.yaml").write_text("plugins: [my_parts]\n")
    others = ["plugins=[my_parts,odd]", "run.dir=run"]
    tried = {name: plugged._tiny([*ALL, *others, *words]) for name, (words, _) in MISTAKES.items()}
    tried["a plugin in a file"] = ["mine.yaml"]
    expected = {name: text for name, (_, text) in MISTAKES.items()}
    expected["a plugin in a file"] = "plugins belongs to one start of a run: name it on the command line"
    process = Forked(["-c", _ONE_AFTER_THE_OTHER, json.dumps(tried)], plugged.cwd, {**os.environ})
    results = json.loads(process.communicate()[0])
    for mistake, (status, error) in results.items():
        assert status == 2, (mistake, error)
        assert error.count("\n") == 1, (mistake, error)
        assert expected[mistake] in error, mistake
    assert not (plugged.cwd / "run").exists()


_ODD = """
import gan_dist, torch
from my_parts import D, G

@gan_dist.register_discriminator("column")
class Column(D):
    def forward(self, x, y=None):
        return super().forward(x, y)[:, None]

@gan_dist.register_generator("flat")
class Flat(G):
    def forward(self, z, y=None):
        return super().forward(z, y).flatten(1)

@gan_dist.register_generator("nameless")
class Nameless(G):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        del self.z_dim

@gan_dist.register_loss("mean")
def mean(width=1.0):
    return gan_dist.Loss(lambda r, f: (f - r).mean(), lambda f: -f)
"""

# Calls the command line with several lists of arguments, and prints the status and the error output of each.
_ONE_AFTER_THE_OTHER = """
import contextlib, io, json, sys
from gan_dist.cli import main
found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
        status = main(["train", *arguments])
    found[name] = status, error.getvalue()
print(json.dumps(found))
"""


def test_a_part_that_is_registered_again_replaces_itself() -> None:
    """As when a cell of a notebook is run twice."""
    table = Table("sort", {"ours": 1})

    def first() -> None: ...
    def second() -> None: ...
    def other() -> None: ...

    other.__module__ = "other"
    table.register("mine", first)
    table.register("mine", second)
    assert table["mine"] is second
    assert [*table] == ["ours", "mine"]
    with pytest.raises(ConfigError, match=f"the module {__name__} has a sort of the name mine already"):
        table.register("mine", other)
    with pytest.raises(ConfigError, match="gan_dist itself has a sort of the name ours"):
        table.register("ours", first)


@pytest.mark.parametrize("name", ["", "a b", "a=b", "[a]", "{a}", "a,b"])
def test_names_can_be_typed_on_the_command_line(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a loss"):
        gan_dist.register_loss(name)


def _package(folder: Path, name: str, kind: str, part: str, code: str) -> None:
    """Install a package with an entry point, as pip would leave it in a directory."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gan_dist.{kind}]\n{part} = {name}\n")


def test_a_broken_package_harms_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import gan_dist\n@gan_dist.register_loss('{}')\ndef loss():\n    return gan_dist.Loss(None, None)\n"
    _package(tmp_path, "a_good_package", "loss", "good", code.format("good"))
    _package(tmp_path, "a_broken_package", "loss", "broken", "raise RuntimeError('not today')\n")
    _package(tmp_path, "a_forgetful_package", "loss", "forgotten", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    parts._entry_points.cache_clear()
    try:
        assert {"good", "broken", "forgotten"} <= {*LOSSES}
        assert isinstance(LOSSES["good"](), Loss)
        with pytest.raises(ConfigError, match=r"loss broken of the installed package a_broken_package .*not today"):
            LOSSES["broken"]
        with pytest.raises(ConfigError, match="does not register it by register_loss"):
            LOSSES["forgotten"]
        assert "good (package a_good_package)" in parts.describe_foreign()
    finally:
        LOSSES._registered.pop("good", None)
        parts._entry_points.cache_clear()


def test_a_plugin_is_imported_from_this_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path.parent))  # so that the path is put back
    (tmp_path / "a_lonely_plugin.py").write_text("VALUE = 3\n")
    load_plugins(["a_lonely_plugin"])
    assert sys.modules["a_lonely_plugin"].VALUE == 3


@pytest.mark.slow
def test_checks_for_users_accept_their_parts_and_find_what_is_wrong(plugged: Program) -> None:
    process = Forked(["-c", _CHECKS, str(ROOT / "tests")], plugged.cwd, {**os.environ})
    out, error = process.communicate()
    assert process.returncode == 0, error
    found = json.loads(out.splitlines()[-1])
    assert found.pop("sound") == ""
    for mistake, text in {
        "not a size": "G.z_dim must be 8",
        "out of range": "G must return values in [-1, 1]",
        "per batch": "D's loss must be (3,), one value per sample",
        "mixes": "D's loss of a sample must not depend on other samples",
        "cut off": "the second derivatives of D are not those of finite differences",
        "draws": "other bits after a stop and a resume",
    }.items():
        assert text in found[mistake], (mistake, found[mistake])


# Makes the checks of `gan_dist.testing` for good and bad parts; its processes are forks, which start sooner.
_CHECKS = """
import json, subprocess, sys; sys.path.append(sys.argv[1])
from pathlib import Path
from types import SimpleNamespace
from forks import Forked
import gan_dist, torch
from gan_dist import testing

class Quick(Forked):
    def __init__(self, command, env, **_):
        super().__init__(command[1:], Path.cwd(), env)

testing.subprocess = SimpleNamespace(Popen=Quick, PIPE=subprocess.PIPE)
Path("bad_parts.py").write_text('''
import torch
import gan_dist
from my_parts import G, D

@gan_dist.register_generator("not_a_size")
class NotASize(G):
    def __init__(self, *args):
        super().__init__(*args)
        self.z_dim = 7

@gan_dist.register_generator("out_of_range")
class OutOfRange(G):
    def forward(self, z, y=None):
        return super().forward(z, y) + 2

@gan_dist.register_discriminator("cut_off")
class CutOff(D):
    def forward(self, x, y=None):
        return super().forward(x, y) + x.flatten(1).square().sum(1) * self.last.weight.mean().detach()

@gan_dist.register_loss("per_batch")
def per_batch():
    return gan_dist.Loss(lambda r, f: (f - r).mean(), lambda f: -f)

@gan_dist.register_loss("mixes")
def mixes():
    return gan_dist.Loss(lambda r, f: f - r.mean(), lambda f: -f)

@gan_dist.register_loss("draws")
def draws():
    return gan_dist.Loss(lambda r, f: (f - r) * torch.rand(()), lambda f: -f)
''')
sys.path.insert(0, "")
import my_parts, bad_parts
found = {}
def tried(name, check, *args, **more):
    try:
        check(*args, **more)
        found[name] = ""
    except AssertionError as error:
        found[name] = str(error)
small = (1, 8, 8)
tried("sound", lambda: (testing.check_architecture("tiny", small, g_args={"gain": 0.5}),
                        testing.check_dataset("stripes", {"count": 50})))
tried("not a size", testing.check_architecture, "not_a_size", small, d_name="tiny")
tried("out of range", testing.check_architecture, "out_of_range", small, d_name="tiny")
tried("cut off", testing.check_architecture, "tiny", small, d_name="cut_off")
for name in ("per batch", "mixes", "draws"):
    tried(name, testing.check_loss, name.replace(" ", "_"))
print(json.dumps(found))
"""


class _Seen:
    """A callback that is handed over in Python, without being registered."""

    at_end = True

    def __init__(self, every_kimg: float = 0.1) -> None:
        self.every_kimg = every_kimg
        self.at: list[int] = []

    def __call__(self, context: Context) -> None:
        self.at.append(context.nimg)
        assert context.settings["train"]["batch_size"] == 32
        assert next(context.G.parameters()).shape == next(context.G_ema.parameters()).shape

    def state_dict(self) -> dict[str, list[int]]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self.at = state["at"]


@pytest.mark.slow
def test_callbacks_from_python_are_called_and_restored(tmp_path: Path) -> None:
    words = [*TINY, f"run.dir={tmp_path / 'run'}", "resume=auto", "sample.every_kimg=0"]
    gan_dist.train([*words, "train.kimg=0.2"], callbacks=[_Seen()])
    later = _Seen()
    gan_dist.train([*words, "train.kimg=0.3"], callbacks=[later])
    assert later.at == [128, 224, 320], "the last one is the end of the training"
    with pytest.raises(ConfigError, match="two callbacks have the name _Seen"):
        gan_dist.train([*words, "train.kimg=0.4"], callbacks=[_Seen(), _Seen()])
    with pytest.raises(ConfigError, match=r"callback _Seen: it must be callable, and have every_kimg"):
        gan_dist.train([*words, "train.kimg=0.4"], callbacks=[_Seen(every_kimg=-1)])
    unsaved = _Seen()
    unsaved.at = [torch.ones(())]  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"callback _Seen: its state_dict\(\) must be JSON"):
        gan_dist.train([*words[:-2], f"run.dir={tmp_path / 'other'}", "train.kimg=0.1"], callbacks=[unsaved])
