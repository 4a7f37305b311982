"""Images, texts and files: what is taken for an image, and where it goes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from stratrun import Runner
from stratrun.errors import ConfigError, MissingDependencyError
from stratrun.loggers import Logger, LoggerGroup, Record
from stratrun.loggers.images import check_image, picture_of
from stratrun.loggers.names import safe_path
from tests.problems import perceptron, points

RED = (255, 0, 0)


def pixels(image: Any) -> tuple[str, tuple[int, int], list[Any]]:
    """Mode, (width, height), and the pixels row by row."""
    check_image(image)
    picture, cut = picture_of(image)
    assert not cut
    return picture.mode, picture.size, list(picture.get_flattened_data())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64, torch.bool])
def test_channels_may_be_first_or_last_and_values_bytes_or_shares(dtype: torch.dtype) -> None:
    first = torch.zeros(3, 2, 5)
    first[0, 1, 4] = 1
    image = (first * 255 if dtype == torch.uint8 else first).to(dtype)
    truth = ("RGB", (5, 2), [*[(0, 0, 0)] * 9, RED])
    assert pixels(image) == truth
    assert pixels(image.movedim(0, -1)) == truth
    if dtype != torch.bfloat16:
        assert pixels(image.numpy()) == truth
        assert pixels(image.movedim(0, -1).numpy()[:, ::-1])[2][5] == RED


def test_one_channel_none_and_four_are_modes_of_their_own() -> None:
    assert pixels(torch.tensor([[0.0, 0.5, 1.0]])) == ("L", (3, 1), [0, 128, 255])
    assert pixels(torch.tensor([[[0.0, 0.5, 1.0]]])) == ("L", (3, 1), [0, 128, 255])
    assert pixels(torch.ones(4, 1, 2)) == ("RGBA", (2, 1), [(255,) * 4] * 2)


def test_where_both_ends_may_be_channels_a_tensor_has_them_first_and_an_array_last() -> None:
    image = torch.zeros(3, 7, 3)
    assert pixels(image)[1] == (3, 7)
    assert pixels(image.numpy())[1] == (7, 3)


def test_a_batch_is_a_grid_with_lines_and_a_long_one_is_cut() -> None:
    batch = torch.stack([torch.full((1, 1, 2), n / 255) for n in (10, 20, 30, 40, 50)])
    assert pixels(batch) == (
        "L",
        (8, 3),
        [*(10, 10, 0, 20, 20, 0, 30, 30), *[0] * 8, *(40, 40, 0, 50, 50, 0, 0, 0)],
    )
    assert pixels(torch.ones(1000, 1, 1, 1))[1] == (15, 15)


def test_a_large_picture_is_shrunk() -> None:
    picture, _ = picture_of(torch.zeros(100, 5000))
    assert picture.size == (2048, 41)
    assert picture_of(Image.new("P", (3000, 6000)))[0].size == (1024, 2048)


def test_pictures_of_pillow_and_figures_are_taken_as_they_are() -> None:
    from matplotlib.figure import Figure

    assert pixels(Image.new("RGB", (2, 1), RED)) == ("RGB", (2, 1), [RED] * 2)
    assert pixels(Image.new("1", (1, 1), 1))[0] == "RGBA"
    figure = Figure(figsize=(2, 1), dpi=50, facecolor="red")
    mode, size, found = pixels(figure)
    assert (mode, size, set(found)) == ("RGB", (100, 50), {RED})


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("a.png", "a str is no image; give a tensor, an array, a picture"),
        (torch.zeros(5), r"shape \(5,\) is not that of an image"),
        (torch.zeros(2, 8, 8), r"shape \(2, 8, 8\) is not that of an image; .* 1, 3 or 4 channels"),
        (torch.zeros(1, 3, 0, 8), r"shape \(1, 3, 0, 8\)"),
        (numpy.zeros((8, 8)).astype(int), "values of type int64 have no known range"),
        (torch.zeros(8, 8, dtype=torch.complex64), "values of type complex64"),
    ],
)
@pytest.mark.parametrize("loggers", [[], ["files"]])
def test_what_is_no_image_is_refused_on_every_rank(
    image: Any, told: str, loggers: Any, tmp_path: Path
) -> None:
    group = LoggerGroup.build(loggers, work_dir=str(tmp_path), is_main=bool(loggers))
    with pytest.raises(ConfigError, match=rf"log_image\('x'\): {told}"):
        group.log_image("x", image, 0)


class Listens(Logger):
    """Hears what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, record: Record) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)


def test_values_out_of_range_are_cut_and_that_is_told_once(tmp_path: Path) -> None:
    listens = Listens()
    group = LoggerGroup.build([listens, "files"], work_dir=str(tmp_path), is_main=True)
    for _ in range(2):
        group.log_image("x", torch.tensor([[-1.0, float("nan"), 0.5, 7.0]]), 3)
    assert len(listens.said) == 1 and "log_image('x'): some values are not from 0 to 1" in listens.said[0]
    assert group.folder is not None
    with Image.open(group.folder.path / "images" / "x" / "00000003.png") as image:
        assert list(image.get_flattened_data()) == [0, 0, 128, 255]


def test_what_no_logger_keeps_is_told_once_of_each_kind(tmp_path: Path) -> None:
    listens = Listens()
    group = LoggerGroup.build([listens, "jsonl"], work_dir=str(tmp_path), is_main=True)
    for _ in range(2):
        group.log_image("x", torch.zeros(2, 2), 0)
        group.log_text("x", "y", 0)
        group.log_file(__file__)
    names = "are kept by none of the loggers (Listens, JsonlLogger); add 'files' to loggers"
    assert listens.said == [f"stratrun: {what} {names}" for what in ("images", "texts", "files")]


def test_files_lie_beside_the_logs_by_default(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("own")
    runner = Runner(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(8), "batch_size": 4},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.1},
        work_dir=tmp_path / "work",
        default_hooks={"checkpoint": None},
    )
    runner.train()
    runner.log_image("val/a b", torch.ones(3, 4, 4))
    runner.log_text("note", "ü\n")
    runner.log_file(tmp_path / "own.txt")
    runner.log_file(tmp_path / "own.txt", "../x/y.txt")
    with pytest.raises(ConfigError, match=r"log_file\('nowhere'\): there is no such file"):
        runner.log_file("nowhere")
    assert runner.log_folder is not None
    folder = Path(runner.log_folder)
    runner.log_file(folder / "metrics.csv")  # there already
    runner.close()
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        *("metrics.csv", "metrics.jsonl", "images/val/a b/00000002.png", "text/note/00000002.txt"),
        *("files/own.txt", "files/_/x/y.txt", "environment.txt"),
    }
    assert (folder / "text" / "note" / "00000002.txt").read_text(encoding="utf-8") == "ü\n"


def test_tensorboard_has_images_and_texts_of_their_iteration(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    group = LoggerGroup.build(["tensorboard"], work_dir=str(tmp_path), is_main=True)
    group.log_image("a/b", torch.ones(3, 2, 5), 7)
    group.log_text("note", "one\ntwo", 8)
    group.close()
    (path,) = tmp_path.rglob("events*")
    data, at, shown = path.read_bytes(), 0, {}
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event()
        event.ParseFromString(data[at + 12 : at + 12 + size])
        at += size + 16
        shown.update({value.tag: (event.step, value) for value in event.summary.value})
    step, value = shown["a/b"]
    assert (step, value.image.width, value.image.height, value.image.colorspace) == (7, 5, 2, 3)
    assert value.image.encoded_image_string.startswith(b"\x89PNG")
    ((step, value),) = [entry for tag, entry in shown.items() if tag.startswith("note")]
    assert step == 8 and value.tensor.string_val == [b"    one\n    two"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b", "a/b"),
        ("/a//b/", "a/b"),
        ("../..", "_/_"),
        (".", "_"),
        ("", "_"),
        ("ü:*", "___"),
        (" a ", "a"),
        ("n" * 400, f"{'n' * 191}-38746e50"),
    ],
)
def test_a_name_leads_nowhere_else(name: str, path: str) -> None:
    assert safe_path(name) == path


def test_without_pillow_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratrun.loggers.images.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stratrun\[images\]'"):
        LoggerGroup().log_image("x", torch.zeros(2, 2), 0)


def test_pillow_is_imported_only_for_an_image() -> None:
    code = "import sys, stratrun.loggers\nfrom stratrun import Runner\nprint('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_name_or_a_text_that_a_file_cannot_have_switches_no_logger_off(tmp_path: Path) -> None:
    group = LoggerGroup.build(["files", "tensorboard"], work_dir=str(tmp_path), is_main=True)
    group.log_text("n" * 400, "cut off\ud83d", 1)
    group.log_image("\ud83d", torch.zeros(2, 2), 1)
    assert len(group.loggers) == 2
    group.close()
    ((text,),) = [list(folder.iterdir()) for folder in tmp_path.glob("runs/*/text/*")]
    assert text.read_text() == "cut off?"


def test_what_is_no_text_and_no_name_is_told() -> None:
    group = LoggerGroup()
    with pytest.raises(ConfigError, match=r"log_text\('note'\): None is no text but a NoneType; give a str"):
        group.log_text("note", None, 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="log_image: the name 3 is no text but a int"):
        group.log_image(3, torch.zeros(2, 2), 1)  # type: ignore[arg-type]
