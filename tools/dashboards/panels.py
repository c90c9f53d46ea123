"""The look of a dashboard, and of its panels: lines, a number, a name, a distribution."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import TypeVar

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heat_looks
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.dashboards.bounds import DOCS_URL
from tools.dashboards.queries import Query

# The variable that selects the data source, so that a dashboard works wherever it is imported.
DATA_SOURCE = "${datasource}"
GREEN, YELLOW, RED = "green", "yellow", "red"

Panel = timeseries.Panel | stat.Panel | heatmap.Panel
P = TypeVar("P", timeseries.Panel, stat.Panel, heatmap.Panel)


def board(name: str, title: str, text: str, panels: Sequence[Panel]) -> models.Dashboard:
    """Return a dashboard with its panels in rows, in the given order."""
    built = (
        dashboard.Dashboard(f"TinyRM: {title}")
        .uid(f"tinyrm-{name}")
        .description(text)
        .tags(["tinyrm"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(sources())
        .with_variable(instances())
        .link(others())
        .link(page("Runbooks", "operations", "What each alert means, and what to do about it"))
        .link(page("Logs", "logs", "Which lines the service writes, and how to search them"))
    )
    for place, panel in enumerate(panels, 1):
        built.with_panel(panel.id(place).datasource(source()))
    result = built.build()
    for variable in (result.templating and result.templating.list_val) or ():
        # The builder gives these to every kind of variable; Grafana's type has them for intervals only.
        variable.auto = variable.auto_count = variable.auto_min = None
    return result


def sources() -> dashboard.DatasourceVariable:
    """Return the variable that selects a Prometheus; the default one at first."""
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")


def instances() -> dashboard.QueryVariable:
    """Return the variable that selects replicas; all of them at first."""
    return (
        dashboard.QueryVariable("instance")
        .label("Instance")
        .datasource(source())
        .query("label_values(tinyrm_build_info, instance)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def others() -> dashboard.DashboardLink:
    """Return a link to the other dashboards, which keeps time and instances."""
    return (
        dashboard.DashboardLink("TinyRM")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["tinyrm"])
        .keep_time(True)
        .include_vars(True)
    )


def page(title: str, name: str, tooltip: str) -> dashboard.DashboardLink:
    """Return a link to a page of the documentation."""
    link = dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK).url(f"{DOCS_URL}/{name}/")
    return link.tooltip(tooltip).icon("doc").target_blank(True)


def lines(
    title: str,
    text: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int = 12,
    bounds: Sequence[tuple[float, str]] = (),
    alert: str = "",
    is_stacked: bool = False,
    is_share: bool = False,
    is_signed: bool = False,
) -> timeseries.Panel:
    """Return a panel of lines.

    bounds: values with the colour of a dashed line there.
    alert: the alert that watches this; the panel links to its runbook.
    is_share: the axis goes from 0 to 1.
    is_signed: the axis is centred at 0.
    """
    panel = framed(timeseries.Panel(), title, text, unit, queries, width=width, height=8, alert=alert)
    panel.show_points(looks.VisibilityMode.NEVER).fill_opacity(60 if is_stacked else 8).line_width(1)
    panel.legend(legend())
    if is_signed:
        panel.axis_centered_zero(True)
    else:
        panel.min(0)
    if is_stacked:
        panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL))
    if is_share:
        panel.max(1)
    if bounds:
        panel.thresholds(thresholds(bounds, first="transparent"))
        style = looks.GraphThresholdsStyleMode.DASHED
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
    return panel


def number(
    title: str,
    text: str,
    unit: str,
    query: Query,
    *,
    bounds: Sequence[tuple[float, str]] = (),
    first: str = GREEN,
    alert: str = "",
) -> stat.Panel:
    """Return a panel with the last value, in the colour of the highest bound that it reaches."""
    panel = framed(stat.Panel(), title, text, unit, [query], width=6, height=4, alert=alert)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.graph_mode(looks.BigValueGraphMode.AREA).color_mode(looks.BigValueColorMode.VALUE)
    return panel.thresholds(thresholds(bounds, first=first))


def name(title: str, text: str, query: Query) -> stat.Panel:
    """Return a panel with the text of the legend, such as a version."""
    panel = framed(stat.Panel(), title, text, "none", [query], width=6, height=4)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.graph_mode(looks.BigValueGraphMode.NONE).color_mode(looks.BigValueColorMode.NONE)
    return panel.text_mode(looks.BigValueTextMode.NAME).thresholds(thresholds((), first=GREEN))


def heat(title: str, text: str, unit: str, query: Query, *, width: int = 12) -> heatmap.Panel:
    """Return a panel with the buckets of a histogram over time."""
    panel = framed(heatmap.Panel(), title, text, unit, [], width=width, height=8)
    panel.with_target(target(query, "A").format(PromQueryFormat.HEATMAP))
    panel.calculate(False).y_axis(heatmap.YAxisConfig().unit(unit))
    panel.color(heatmap.HeatmapColorOptions().mode(heat_looks.HeatmapColorMode.SCHEME).scheme("Turbo").steps(64))
    # Empty cells stay dark; without this they have the colour of a small count.
    return panel.filter_values(heatmap.FilterValueRange().le(1e-9)).cell_gap(1)


def framed(
    panel: P, title: str, text: str, unit: str, queries: Sequence[Query], *, width: int, height: int, alert: str = ""
) -> P:
    panel.title(title).description(text).unit(unit).span(width).height(height)
    for query, reference in zip(queries, ascii_uppercase, strict=False):
        panel.with_target(target(query, reference))
    if alert:
        link = page(f"Runbook: {alert}", "operations", "What it means, and what to do about it")
        panel.links([link.url(f"{DOCS_URL}/operations/#{alert.lower()}")])
    return panel


def target(query: Query, reference: str) -> prometheus.Dataquery:
    """Return a query for a panel.

    reference: unique within the panel; of two queries with the same one, Grafana drops one.
    """
    return prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(reference).range()


def legend() -> common.VizLegendOptions:
    shown = common.VizLegendOptions().display_mode(looks.LegendDisplayMode.LIST).placement(looks.LegendPlacement.BOTTOM)
    return shown.show_legend(True).calcs([])


def thresholds(bounds: Sequence[tuple[float, str]], first: str) -> dashboard.ThresholdsConfig:
    """Return bounds with their colours.

    first: the colour below all bounds.
    """
    steps = [models.Threshold(value=None, color=first), *(models.Threshold(value=v, color=c) for v, c in bounds)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def source() -> models.DataSourceRef:
    return models.DataSourceRef(type_val="prometheus", uid=DATA_SOURCE)
