"""The documents: their fences, links and commands, and the recorder of the outputs that they show."""

from tests.support.docs.markdown import code_blocks as code_blocks
