"""What a run directory says about its run, and what happens where it can't be read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, _in_order, read_until, run_here
from PIL import Image
from program import COMMAND, TREE, Program, Result

pytestmark = pytest.mark.slow

SHORT = ["train.kimg=1", "checkpoint.every_kimg=0.5", "sample.every_kimg=0", "run.dir=run"]
NEWEST, OLDER = "000000001024", "000000000512"


@pytest.fixture(scope="module")
def made(shared_program: Program) -> Path:
    """A directory with a finished run, whose loss is not the default."""
    result = shared_program.train(*SHORT, "loss.name=hinge")
    assert result.returncode == 0, result.stderr
    return shared_program.cwd


@pytest.fixture
def resumed(made: Path, program: Program) -> Program:
    """The command line in a copy of that directory."""
    return program.with_copy_of(made)


@pytest.mark.clause("1.4", "config.yaml is missing, empty or broken, and the run goes on with another loss")
@pytest.mark.parametrize("state", ["missing", "empty", "broken"])
def test_config_of_the_newest_checkpoint_counts(state: str, resumed: Program) -> None:
    config = resumed.cwd / "run/config.yaml"
    config.unlink()
    if state != "missing":
        config.write_text("" if state == "empty" else "loss: {name: hin")
    words = ["run.dir=run", "resume=latest", "train.kimg=1.1", "train.device=cpu", "tracking.wandb=disabled"]
    result = resumed("train", *words)
    assert result.returncode == 0, result.stderr
    said = {"broken": "cannot read this config"}.get(state, f"run/config.yaml is {state}")
    for text in (result.stdout, (resumed.cwd / "run/log.txt").read_text()):
        assert said in text
        assert f"the settings of run/checkpoints/{NEWEST}/config.yaml count" in text
    assert "name: hinge" in config.read_text()


@pytest.mark.clause("1.4", "with config.yaml absent a new run is trained among old checkpoints")
def test_directory_with_checkpoints_holds_a_run(resumed: Program) -> None:
    (resumed.cwd / "run/config.yaml").unlink()
    shutil.rmtree(resumed.cwd / "run/samples")
    before = sorted((resumed.cwd / "run").rglob("*"))
    result = resumed.train(*SHORT)
    assert result.returncode == 2
    assert "run.dir=run already holds a run: go on with it by resume=latest" in result.stderr
    assert sorted((resumed.cwd / "run").rglob("*")) == before


@pytest.mark.clause("1.4", "config.yaml was changed by hand, which nobody says")
def test_change_by_hand_is_said_and_checked(resumed: Program) -> None:
    config = resumed.cwd / "run/config.yaml"
    text = config.read_text()
    config.write_text(text.replace("kimg: 1.0", "kimg: 1.1"))
    result = resumed("train", "run.dir=run", "resume=latest")
    assert result.returncode == 0, result.stderr
    assert "run/config.yaml was changed by hand since the run wrote it; its settings count" in result.stdout
    assert "train.kimg: 1.0 -> 1.1" in result.stdout
    again = resumed("train", "run.dir=run", "resume=latest")
    assert "by hand" not in again.stdout
    config.write_text(config.read_text().replace("name: hinge", "name: minimax"))
    result = resumed("train", "run.dir=run", "resume=latest", "train.kimg=1.2")
    assert result.returncode == 2
    assert "loss.name: hinge -> minimax" in result.stderr


@pytest.mark.clause("1.4", "the run's config.yaml names the checkpoint that it starts from")
def test_config_names_its_checkpoint(resumed: Program) -> None:
    assert resumed("train", "run.dir=run", "resume=latest", "train.kimg=1.1").returncode == 0
    record = (resumed.cwd / "run/config.yaml").read_text().splitlines()[1].removeprefix("# record ")
    assert json.loads(record)["starts_from"] == NEWEST


@pytest.mark.clause(
    "1.4", "a length and allowed changes given at a start are lost by a kill before the next checkpoint"
)
@pytest.mark.clause("1.3", "other images are refused unless data.content is allowed")
def test_what_a_start_was_given_outlives_a_kill(program: Program) -> None:
    pictures = program.cwd / "pictures"
    pictures.mkdir()
    for i in range(40):
        Image.fromarray(np.full((8, 8), 6 * i, dtype=np.uint8)).save(pictures / f"{i:02d}.png")
    data = ["data.name=folder", "data.root=pictures", "data.image_size=8", "data.channels=1", "model.conditional=false"]
    assert program.train(*SHORT, *data, "train.batch_size=16").returncode == 0
    Image.fromarray(np.full((8, 8), 255, dtype=np.uint8)).save(pictures / "00.png")
    changed = ["run.dir=run", "resume=latest", "train.kimg=100000", "loss.name=hinge", "checkpoint.every_kimg=100000"]
    result = program("train", *changed, "allow_changes=[loss.name]")
    assert result.returncode == 2
    assert "the data set's content differs" in result.stderr
    assert "allow_changes=[data.content]" in result.stderr
    process = program.start("train", *changed, "log.every_kimg=0.1", "allow_changes=[loss.name,data.content]")
    read_until(process, "/100000 kimg")
    process.kill()
    process.communicate()
    assert sorted(path.name for path in (program.cwd / "run/checkpoints").iterdir()) == [OLDER, "000000001008"]
    process = program.start("train", "run.dir=run", "resume=latest")
    assert "loss.name: non_saturating -> hinge" in read_until(process, "/100000 kimg")
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 75, out + error
    newest = max((program.cwd / "run/checkpoints").iterdir())
    assert "name: hinge" in (newest / "config.yaml").read_text()


STRANGERS = ["metrics.jsonl", "log.txt", "config.yaml", "checkpoints/a", "samples/a.png", "evaluations.jsonl"]


@pytest.mark.clause("1.4", "a directory that holds metrics.jsonl or the like, but no run, loses it")
@pytest.mark.parametrize("name", STRANGERS)
def test_files_of_the_names_that_a_run_writes_are_kept(name: str, program: Program) -> None:
    path = program.cwd / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine: [")
    for resume in ("never", "auto"):
        result = program.train("run.dir=run", "train.kimg=0.1", f"resume={resume}")
        assert result.returncode == 2
        assert f"run.dir=run holds {name.partition('/')[0]} but no run that could go on" in result.stderr
        assert result.stderr.count("\n") == 1
    assert path.read_text() == "mine: ["
    assert [entry for entry in (program.cwd / "run").rglob("*") if entry.is_file()] == [path]


@pytest.mark.clause("1.4", "a directory with other files, or the log of a start that was killed, is no obstacle")
def test_other_files_are_no_obstacle(program: Program) -> None:
    (program.cwd / "run/samples").mkdir(parents=True)
    for name in ("notes.txt", ".starts", "log.txt", ".owner"):
        (program.cwd / "run" / name).write_text("mine\n")
    result = program.train("run.dir=run", "train.kimg=0.1", "resume=auto")
    assert result.returncode == 0, result.stderr
    assert (program.cwd / "run/log.txt").read_text().startswith("mine\n")


# --- files that cannot be read, which is not damage -------------------------------------------------------------------

FAULTS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* The next error of the list in FAULTS if the path contains FAULTS_AT; 0 after the end of the list. */
static int fault(const char *path) {
  static int taken;
  const char *at = getenv("FAULTS_AT"), *list = getenv("FAULTS");
  if (!at || !strstr(path, at)) return 0;
  for (int i = 0; i < taken && list; i++) list = (list = strchr(list, ',')) ? list + 1 : list;
  if (!list || !*list) return 0;
  taken++;
  return atoi(list);
}

static void name(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, 4095);
  path[n < 0 ? 0 : n] = 0;
}

int open64(const char *path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  mode_t mode = va_arg(more, mode_t);
  va_end(more);
  int error = (flags & O_ACCMODE_) ? 0 : fault(path);
  if (error) { errno = error; return -1; }
  return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64"))(path, flags, mode);
}

int fsync(int fd) {
  char path[4096];
  name(fd, path);
  const char *file = getenv("FSYNC_AT");
  int error = file && strstr(path, file) ? atoi(getenv("FSYNC")) : 0;
  if (error) { errno = error; return -1; }
  return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
""".replace("O_ACCMODE_", "3")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for LD_PRELOAD that lets calls of the system fail, as a network file system does."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "faults.c").write_text(FAULTS)
    built = subprocess.run(["cc", "-shared", "-fPIC", "-o", "faults.so", "faults.c", "-ldl"], cwd=folder, check=False)
    if built.returncode:
        pytest.skip("needs a C compiler")
    return folder / "faults.so"


def _with_faults(program: Program, library: Path, *arguments: str, **faults: str) -> Result:
    """Run a command in a new process, since a library is preloaded only where a program starts."""
    env = {**os.environ, "PYTHONPATH": TREE or str(ROOT), "LD_PRELOAD": str(library), **faults}
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, cwd=program.cwd, env=env, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.clause("1.4", "one transient EIO, ESTALE or EMFILE loses the newest checkpoint")
def test_error_that_passes_costs_nothing(resumed: Program, faulty: Path) -> None:
    faults = {"FAULTS_AT": f"{NEWEST}/G_ema", "FAULTS": "5,116,24"}
    result = _with_faults(resumed, faulty, "train", "run.dir=run", "resume=auto", "train.kimg=1.1", **faults)
    assert result.returncode == 0, result.stderr
    assert f"going on from run/checkpoints/{NEWEST}" in result.stdout
    assert not list((resumed.cwd / "run/checkpoints").glob("aside-*"))
    assert (resumed.cwd / "run/checkpoints/000000001120").is_dir()


@pytest.mark.clause("1.4", "a checkpoint that stays unreadable is taken for damaged")
@pytest.mark.clause("1.4", "config.yaml that stays unreadable is taken for missing")
@pytest.mark.skipif(os.getuid() != 0, reason="gives up rights for a while, which needs root")
@pytest.mark.parametrize("name", [f"checkpoints/{NEWEST}/G.safetensors", "config.yaml"])
def test_file_that_stays_unreadable_ends_the_start(name: str, made: Path) -> None:
    words = ["train", "run.dir=run", "resume=auto", "train.kimg=1.1"]
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        program = Program(Path(folder), run_here, _in_order).with_copy_of(made)
        (program.cwd / "run" / name).chmod(0)
        before = sorted(Path(folder).rglob("*"))
        if TREE is None:
            with _another_user(Path(folder)):
                result = program(*words)
        else:
            result = _without_rights(program, *words)
        assert result.returncode == 1
        assert f"run/{name}: cannot be read (Permission denied)" in result.stderr
        assert result.stderr.count("\n") == 1
        assert sorted(Path(folder).rglob("*")) == before


@contextmanager
def _another_user(folder: Path) -> Iterator[None]:
    """Let this process be another user, to whom the folder belongs: root may read every file."""
    nobody = 65534
    for path in (folder, *folder.rglob("*")):
        os.chown(path, nobody, nobody)
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(0)


def _without_rights(program: Program, *arguments: str) -> Result:
    """Run a command in a new process as root without root's right to read every file."""
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    env = {**os.environ, "PYTHONPATH": TREE or str(ROOT)}
    command = [*rights, sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, cwd=program.cwd, env=env, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.clause("2.6", "EIO of a file's fsync is refused at the start, not after days")
def test_disk_that_cannot_flush_files_is_refused(program: Program, faulty: Path) -> None:
    words = ["run.dir=a/run", "train.kimg=0.1", "train.device=cpu", "tracking.wandb=disabled", "metrics.every_kimg=0"]
    result = _with_faults(program, faulty, "train", *words, FSYNC_AT="/run/.config", FSYNC="5")
    assert result.returncode == 2
    assert "run.dir=a/run: this disk cannot keep files safely" in result.stderr
    assert list(program.cwd.iterdir()) == []
