"""How the processes of a job are started: each launcher makes a command line of torchrun's, or around it."""

from stratrun.launch.base import Job, Launcher, Start
from stratrun.launch.slurm import SlurmLauncher
from stratrun.launch.torchrun import TorchrunLauncher

__all__ = ["Job", "Launcher", "SlurmLauncher", "Start", "TorchrunLauncher"]
