"""A trained model on raw inputs."""

from stratrun.inference.inferencer import Inferencer

__all__ = ["Inferencer"]
