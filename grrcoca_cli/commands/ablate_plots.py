"""The pictures of a study's report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grrcoca_cli.commands.ablate_findings import Findings, samples_of
from grrcoca_cli.commands.ablate_results import CURVES, ArmResult, Effect
from grrcoca_cli.commands.results import LABELS
from grrcoca_cli.evaluation.examples import LOSSES
from grrcoca_cli.files import explain_os_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AS_LOGARITHM = ("ppl_token",)
"""Near 1 a perplexity hides what its logarithm, nats a token, shows."""
UNITS = {"ppl_token": "its logarithm, nats a token"}


def draw_curves(path: Path, results: Sequence[ArmResult]) -> None:
    """Validation losses over steps: the mean over seeds as a line, the smallest to the largest as a band."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    def panel(axes: "Axes", metric: str) -> None:
        for place, result in enumerate(results):
            curves = [run.curve(metric) for run in result.runs.values() if metric in result.metrics]
            length = min((len(steps) for steps, _ in curves), default=0)
            if length < 2:
                continue
            steps, losses = curves[0][0][1:length], np.array([values[1:length] for _, values in curves])
            losses = np.log(losses) if metric in AS_LOGARITHM else losses
            colour = f"C{place % 10}"  # the loss before the first step would flatten all that follows
            axes.plot(steps, losses.mean(axis=0), ".-" if length < 12 else "-", color=colour, label=result.arm.name)
            axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="step", ylabel=UNITS.get(metric, "nats"), yscale="log")
        axes.yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 3, 5)),
            major_formatter=StrMethodFormatter("{x:g}"),
            minor_locator=NullLocator(),
        )

    _figure(path, CURVES, panel, height=4.2)


def draw_changes(path: Path, results: Sequence[ArmResult]) -> None:
    """Relative change of each arm in each loss, with its interval over seeds."""
    shown = [result for result in results if any(metric.change for metric in result.metrics.values())]

    def panel(axes: "Axes", metric: str) -> None:
        for place, result in enumerate(shown):
            change = result.metrics[metric].change if metric in result.metrics else None
            if change is not None:
                ends = (change.interval.low, change.interval.high) if change.interval else (change.percent,) * 2
                axes.plot(ends, [place, place], color="tab:blue", lw=1.5)
                axes.plot([change.percent], [place], "o", color="tab:blue")
        axes.axvline(0, color="0.5", lw=0.8)
        axes.set_yticks(range(len(shown)), [result.arm.name for result in shown])
        axes.set(xlabel="change, %, below 0 is better", ylim=(len(shown) - 0.5, -0.5))

    _figure(path, LOSSES, panel, height=1.4 + 0.35 * len(shown), legend=False)


def draw_effects(path: Path, effects: Sequence[Effect]) -> None:
    """Main effects and interactions in per cent of the baseline's loss."""
    names = list(dict.fromkeys(effect.factors for effect in effects))

    def panel(axes: "Axes", metric: str) -> None:
        for effect in (each for each in effects if each.metric == metric):
            place, scale = names.index(effect.factors), effect.percent / effect.value if effect.value else 0.0
            if effect.interval is not None:
                axes.plot(
                    [effect.interval.low * scale, effect.interval.high * scale], [place] * 2, color="tab:blue", lw=1.5
                )
            axes.plot([effect.percent], [place], "o", color="tab:blue")
        axes.axvline(0, color="0.5", lw=0.8)
        axes.set_yticks(range(len(names)), [" × ".join(factors) for factors in names])
        axes.set(xlabel="% of the baseline, below 0 is better", ylim=(len(names) - 0.5, -0.5))

    _figure(path, LOSSES, panel, height=1.4 + 0.3 * len(names), legend=False)


def draw_scaling(path: Path, found: Findings) -> None:
    """Losses over training samples, a line a model size, with the fitted power law dashed."""
    results = [result for result in found.results[found.last] if result.runs]
    sizes = sorted({result.fact("parameters") for result in results})

    def panel(axes: "Axes", metric: str) -> None:
        for place, size in enumerate(sizes):
            own = sorted((result for result in results if result.fact("parameters") == size), key=samples_of)
            samples = [samples_of(result) for result in own]
            axes.plot(
                samples, [r.metrics[metric].value for r in own], "o", color=f"C{place}", label=f"{size / 1e6:.2f} M"
            )
            axes.plot(samples, [found.scaling[metric].at(size, each) for each in samples], "--", color=f"C{place}")
        axes.set(xscale="log", yscale="log", xlabel="training samples", ylabel="nats")

    _figure(path, list(found.scaling), panel, height=3.8)


def _figure(
    path: Path, metrics: Sequence[str], panel: "Callable[[Axes, str], None]", *, height: float, legend: bool = True
) -> None:
    """A row of panels, one a metric, written as PNG without a date in it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.3 * len(metrics), height), layout="constrained")
    FigureCanvasAgg(figure)
    for column, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(1, len(metrics), column)
        panel(axes, metric)
        axes.set_title(LABELS[metric])
        axes.grid(alpha=0.3)
    # An arm that is not trained for one loss stands in the other panels alone.
    named = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes)
    handles = {label: handle for panel_of in named for handle, label in panel_of}
    if legend and handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    with explain_os_errors(path):
        figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
