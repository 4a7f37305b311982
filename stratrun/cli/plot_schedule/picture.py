"""A course as a picture."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stratrun.cli.plot_schedule.course import Course

_NAMED = 12
"""More groups than these are drawn without a legend."""
_MARKED = 40


def draw(course: Course, path: str) -> None:
    """Write it to a file, of the kind that its ending says."""
    # Not pyplot, which would look for a screen.
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values in course.values.items():
        axes.step(course.kept, values, where="post", label=name, linewidth=1.5)
    axes.set_xlabel("update")
    axes.set_ylabel(course.param)
    axes.grid(alpha=0.3)
    axes.margins(x=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if len(course.values) <= _NAMED:
        axes.legend(frameon=False)
    if course.epochs:
        above = axes.secondary_xaxis("top")
        every = -(-len(course.epochs) // 10)
        above.set_xticks(course.epochs[every - 1 :: every])
        above.set_xticklabels([str(n) for n in range(every, len(course.epochs) + 1, every)])
        above.set_xlabel("epoch ends")
    if 1 < len(course.epochs) <= _MARKED:
        for end in course.epochs:
            axes.axvline(end, color="black", alpha=0.08, linewidth=0.8)
    figure.savefig(path, dpi=120)
