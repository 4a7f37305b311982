"""What a test must leave as it found it."""

from stratrun.testing.process_state import Snapshot

__all__ = ["Snapshot"]
