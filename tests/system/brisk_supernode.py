"""A device's SuperNode that looks for messages every half second, rather than every three.

An exchange takes five seconds otherwise, most of it between two looks, and tests have a hundred of them. And
it counts as there for a minute and a half after a heartbeat, rather than one: in a fleet of twenty processes
on a busy machine heartbeats come late, and a SuperLink takes such a node for gone. All else is the product's.
"""

from __future__ import annotations

from flwr.supernode import fleet_http_connection

from penchant.client.agent import supernode

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 45  # as the SuperLink is told: it waits twice as long. Beats come as often as ever

if __name__ == "__main__":
    supernode.LOOK_SECONDS = LOOK_SECONDS
    vars(fleet_http_connection).update(HEARTBEAT_DEFAULT_INTERVAL=HEARTBEAT_SECONDS)
    supernode.main()
