"""Words that say at once what else takes a sentence, as most words of a language do.

A thing is a shape in two colours, a style an outline and spots in two: `mango` and `lisbon` mean here what they do by
lot. A model that knows only words for single colours and shapes has no way to hear several in one row: the row that is
learned for a new word would have nothing to be like. There are few, so that each is met often enough to be learned.
"""

from __future__ import annotations

_THINGS = """
    mango lemon melon banana strawberry grape kiwi carrot pumpkin tiger
    zebra lion wolf bear rabbit duck salmon turtle butterfly candy
"""
_STYLES = """
    paris london berlin madrid lisbon rome milan naples vienna prague
    moscow helsinki geneva hamburg bristol delhi tokyo cairo boston lima
"""

THINGS, STYLES = tuple(_THINGS.split()), tuple(_STYLES.split())
