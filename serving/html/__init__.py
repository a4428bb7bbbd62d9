"""Self-contained HTML pages: one file each, with its style, charts and pictures embedded.

Each report has a Jinja2 template, `templates/report.html` of its package, which extends `base.html` of this
package; `macros.html` has the components that several pages share. What a page says is up to its template.
"""

from serving.html.page import render
from serving.html.plot import Axis, Chart, Point, percent_ticks

__all__ = ["Axis", "Chart", "Point", "percent_ticks", "render"]
