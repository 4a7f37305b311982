"""What hardware can do at most: matrix products a second, as their makers state them, without sparsity."""

import torch

_TERA = 1e12

# By a part of the name that torch gives, most telling first: 16-bit, tf32, float32. Dense figures of the
# makers' data sheets; one of two dies counts by itself where torch shows each as one.
_PEAKS: tuple[tuple[str, float, float, float], ...] = (
    ("GB200", 2500, 1250, 80),
    ("B200", 2250, 1125, 75),
    ("H200", 989, 494.5, 67),
    ("H100 NVL", 835, 417.5, 60),
    ("H100 PCIe", 756, 378, 51),
    ("GH200", 989, 494.5, 67),
    ("H100", 989, 494.5, 67),
    ("H800", 989, 494.5, 67),
    ("H20", 148, 74, 44),
    ("A100", 312, 156, 19.5),
    ("A800", 312, 156, 19.5),
    ("A40", 149.7, 74.8, 37.4),
    ("A30", 165, 82, 10.3),
    ("A10G", 70, 35, 35),
    ("A10", 125, 62.5, 31.2),
    ("L40S", 362, 183, 91.6),
    ("L40", 181, 90.5, 90.5),
    ("L4", 121, 60, 30.3),
    ("V100", 125, 0, 15.7),
    ("T4", 65, 0, 8.1),
    ("MI355X", 2500, 0, 157.3),
    ("MI325X", 1307.4, 653.7, 163.4),
    ("MI300X", 1307.4, 653.7, 163.4),
    ("MI300A", 980.6, 490.3, 122.6),
    ("MI250", 181, 0, 22.6),
)
# These have no bfloat16 in hardware: what is told of 16 bits is float16 alone.
_FLOAT16_ALONE = ("V100", "T4")


def peak_flops(name: str, precision: str, *, tf32: bool = False) -> float | None:
    """Floating point operations a second of one device, or None where nothing is known.

    Args:
        name: What torch calls the device, such as ``"NVIDIA H100 80GB HBM3"``.
        precision: What a run calls its number format, such as ``"bf16-mixed"``.
        tf32: Whether products of float32 may be computed in TF32.
    """
    words = name.upper().replace("-", " ").split()
    for part, half, short, full in _PEAKS:
        if not _names(part.upper().split(), words):
            continue
        if precision.startswith("bf16") and part in _FLOAT16_ALONE:
            return None
        if precision.startswith(("16", "bf16")):
            return half * _TERA
        if precision.startswith("32"):
            return (short if tf32 and short else full) * _TERA
        return None
    return None


def peak_of(device: torch.device, precision: str) -> float | None:
    """The same for a device at hand."""
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_flops(torch.cuda.get_device_name(device), precision, tf32=tf32)


def _names(part: list[str], words: list[str]) -> bool:
    """Whether all words of a part are among those of a name: "L4" is no "L40"."""
    return all(word in words for word in part)
