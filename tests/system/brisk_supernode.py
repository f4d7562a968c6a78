"""A device's SuperNode that looks for messages every half second, rather than every three.

An exchange takes five seconds otherwise, most of it between two looks, and tests have a hundred of them. All
else is the product's.
"""

from __future__ import annotations

from penchant.client.agent import supernode

LOOK_SECONDS = 0.5

if __name__ == "__main__":
    supernode.LOOK_SECONDS = LOOK_SECONDS
    supernode.main()
