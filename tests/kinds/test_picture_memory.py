"""What pictures can take: memory, time, and more than pictures: pipes and devices in their place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from program import TREE, Program

ROOT = Path(__file__).parent.parent.parent
PREFETCH = ["prefetch", "data.name=folder", "data.root=images", "data.image_size=8", "model.conditional=false",
            "metrics.every_kimg=0", "train.batch_size=1"]  # fmt: skip
PEAK = r"""
import re, sys
from pathlib import Path
from gan_dist.cli import main
status = main(sys.argv[1:])
# The operating system's ru_maxrss would begin with what the process that has started this one takes.
print("peak", int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
sys.exit(status)
"""


def _run(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code with the package of the tree that is tested."""
    env = {**os.environ, "PYTHONPATH": TREE or str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.clause("4.1", "a PNG of 174 KB takes 2.9 GB")
def test_large_picture_takes_no_more_than_a_few_bytes_for_each_pixel(program: Program) -> None:
    (program.cwd / "images").mkdir()
    Image.new("LA", (9000, 9000)).save(program.cwd / "images/0.png", compress_level=1)
    result = _run(PEAK, *PREFETCH, cwd=program.cwd)
    assert "1 of 1 images can be read" in result.stdout, result.stderr
    assert int(result.stdout.split()[-1]) < 1500, "MiB, of which torch takes about 400"


@pytest.mark.clause("4.1", "a sparse AVIF of 4 GB is read whole")
def test_too_large_file_is_not_read(program: Program) -> None:
    (program.cwd / "images").mkdir()
    Image.new("RGB", (8, 8)).save(program.cwd / "images/x.avif")
    os.truncate(program.cwd / "images/x.avif", 600 * 2**20)
    result = program(*PREFETCH)
    assert result.returncode == 1
    assert "x.avif: 629,145,600 bytes are more than 536,870,912" in result.stderr


@pytest.mark.slow
@pytest.mark.clause("4.4", "every path is a Python object in every process")
def test_list_of_files_takes_few_bytes_for_each(program: Program) -> None:
    (program.cwd / "images").mkdir()
    for i in range(5000):
        (program.cwd / f"images/{i:06d}.png").touch()
    code = """
import pathlib, pickle, tracemalloc
try:
    from gan_dist.data.listing import list_images
except ImportError:
    from gan_dist.data.folder import list_images
files = list_images(pathlib.Path("images"), False)[0]
sent = pickle.dumps(files)
tracemalloc.start()
received = pickle.loads(sent)
print(tracemalloc.get_traced_memory()[0] // len(received), len(sent) // len(received))
"""
    result = _run(code, cwd=program.cwd)
    held, sent = map(int, result.stdout.split())
    assert held < 60, "bytes"
    assert sent < 60, "bytes"


@pytest.mark.slow
@pytest.mark.clause("2.5", "a pipe or a device in place of a picture hangs or is read without end")
def test_what_is_no_regular_file_is_left_out(program: Program) -> None:
    images = program.cwd / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(program.cwd / "elsewhere.png")
    (images / "link.png").symlink_to("../elsewhere.png")
    (images / "nowhere.png").symlink_to("gone.png")
    os.mkfifo(images / "pipe.png")
    (images / "zero.png").symlink_to("/dev/zero")
    result = program.process(*PREFETCH, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "left out 2 pipes, sockets and devices, for example pipe.png" in result.stdout + result.stderr
    assert "1 of 2 images can be read" in result.stdout, "a link to a picture is followed; one leads nowhere"
