"""drawings: the scenes again, with people's vector art for shapes and real letters for their words (docs/data.md).

A document shows what the scenes' document of the same index shows, and asks the same. So whatever differs between both worlds is
the pictures'.
"""

from tunalab.data.drawings.art import load_art
from tunalab.data.drawings.cast import PARTS
from tunalab.data.drawings.corpus import DrawingsCorpus, benchmark, caption_source, split_of

__all__ = ["PARTS", "DrawingsCorpus", "benchmark", "caption_source", "load_art", "split_of"]
