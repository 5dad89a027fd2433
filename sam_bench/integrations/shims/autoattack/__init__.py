"""Shim for `autoattack`: its classic interface over `pyautoattack`, which is the same attack."""

from sam_bench.integrations.autoattack_adapter import AutoAttack

__all__ = ["AutoAttack"]
