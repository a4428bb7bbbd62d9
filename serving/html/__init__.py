"""Self-contained HTML pages: one file each, with its style, charts and pictures embedded.

`markup` builds elements, `plot` charts, `parts` the components that several pages share and the page
itself. What a page says is up to its caller.
"""

from serving.html.markup import Child, Element, element
from serving.html.parts import document

__all__ = ["Child", "Element", "document", "element"]
