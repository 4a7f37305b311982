import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratrun.loggers.base import Logger
from stratrun.loggers.record import Record
from stratrun.registry import LOGGERS

if TYPE_CHECKING:
    from PIL.Image import Image


@LOGGERS.register_module("tensorboard")
class TensorBoardLogger(Logger):
    """Event files in the folder ``tensorboard``, written by tensorboardX.

    Names are ``<kind>/<name>``; the horizontal axis counts training iterations.
    """

    def __init__(self, subfolder: str = "tensorboard", *, flush_seconds: int = 30) -> None:
        self.subfolder = subfolder
        self.flush_seconds = flush_seconds
        self._folder: Path
        self._writer: Any = None
        self._opened = 0
        self._flushed = time.monotonic()

    def open(self, folder: Path) -> None:
        import tensorboardX  # noqa: F401  (a missing package is told now, not at the first record)

        self._folder = folder / self.subfolder

    def log(self, record: Record) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        # One event for all values: a tenth of the cost of `add_scalar` for each of them.
        values = [
            Summary.Value(tag=f"{record.kind}/{name}", simple_value=value)
            for name, value in record.values.items()
        ]
        self._write(Summary(value=values), record.iter, record.time)

    def log_config(self, text: str) -> None:
        self._write_text("config", text, 0)

    def log_image(self, name: str, image: "Image", step: int) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        encoded = BytesIO()
        image.save(encoded, format="png")
        shown = Summary.Image(
            width=image.width,
            height=image.height,
            colorspace=len(image.getbands()),
            encoded_image_string=encoded.getvalue(),
        )
        self._write(Summary(value=[Summary.Value(tag=name, image=shown)]), step, time.time())

    def log_text(self, name: str, text: str, step: int) -> None:
        self._write_text(name, text, step)

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write_text(self, tag: str, text: str, step: int) -> None:
        from tensorboardX.summary import text as text_summary

        # Indented by four, Markdown shows it as it is.
        shown = "\n".join(f"    {line}" for line in text.splitlines())
        self._write(text_summary(tag, shown), step, time.time())

    def _write(self, summary: Any, step: int, seconds: float) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._open_writer().write_event(Event(summary=summary, step=step, wall_time=seconds))
        if time.monotonic() - self._flushed > self.flush_seconds:
            self.flush()

    def _open_writer(self) -> Any:
        if self._writer is None:
            # Not its FileWriter, whose thread may still have to write what was there before a flush.
            from tensorboardX.event_file_writer import EventsWriter

            self._folder.mkdir(parents=True, exist_ok=True)
            # Files are named by the second; one opened again must not write over the last.
            suffix = f".{self._opened}"
            self._writer = EventsWriter(str(self._folder / "events"), suffix)
            self._opened += 1
        return self._writer
