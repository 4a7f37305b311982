"""What a range test has found, as text."""

from stratrun.cli.bars import bars
from stratrun.runner.lr_curve import FoundLR


def as_text(found: FoundLR) -> str:
    """The smoothed loss over rates, and what it suggests."""
    lines: list[str] = []
    if found.lrs:
        drawn, width = bars(found.smoothed, min(found.smoothed))
        ends = f"{found.lrs[0]:<{max(width - 6, 8)}.3g}{found.lrs[-1]:.3g}"
        lines = ["smoothed loss", *drawn, f"{'':>11}{ends} learning rate", ""]
    if found.suggestion is None:
        lines.append(f"no suggestion: {found.reason}")
    else:
        lines.append(f"suggestion: lr={found.suggestion:.3g}, {found.reason}")
        lines.append(f"a tenth of the rate at the minimum: lr={found.tenth_of_minimum:.3g}")
    return "\n".join([*lines, f"the test ended: {found.ended}"])
