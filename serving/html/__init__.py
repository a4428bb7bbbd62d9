"""Pages for people to look at: one HTML file each, with its style, diagrams and pictures in it.

`markup` makes elements, `plot` diagrams, `parts` what several pages have in common and the page itself.
What a page tells is the business of who makes it.
"""

from serving.html.markup import Child, Element, element
from serving.html.parts import document

__all__ = ["Child", "Element", "document", "element"]
