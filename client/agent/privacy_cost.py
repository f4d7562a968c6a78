"""What a round costs its owner in privacy: by the plan, the manifest and the owner's own word on colluders.

Nothing here depends on anybody's choices, so a refusal for want of budget tells nothing of them.
"""

from __future__ import annotations

from penchant.client.agent.accepted_runs import least_group
from penchant.client.agent.policy import OwnerPolicy
from penchant.client.vault.privacy_ledger import Cost
from penchant.common.config import Plan
from penchant.common.errors import PolicyRefusal
from penchant.common.privacy.accounting import EPSILON_LEAST, rho_of
from penchant.common.secagg.transcript import threshold
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.wire.messages import Announce, Kind

__all__ = ["budget_of", "cost_of", "honest_in"]


def budget_of(policy: OwnerPolicy) -> float:
    """The owner's budget, in zero-concentrated differential privacy (rho)."""
    return rho_of(policy.max_epsilon, policy.delta) if policy.max_epsilon >= EPSILON_LEAST else 0.0


def cost_of(announce: Announce, plan: Plan, layout: UpdateLayout, policy: OwnerPolicy) -> Cost:
    """The cost of one vector of the announced round.

    Every sum is over the people of the manifest's least group or more, and by this owner's word all but
    `max_colluders` of them are honest. No more of them count than the plan counts on: where there are more,
    each adds less noise (`honest_in`; common/privacy/proofs.md). Without masks everybody's noise is alone.
    A run takes as many vectors as its plan says, or fewer, if the owner says so (`sums_a_run`).
    announce: one that `accepted_runs.admit` has checked. PolicyRefusal when nobody is left.
    """
    most = budget_of(policy)
    if layout.noise is None:
        return Cost(None, most, policy.sums_a_run)
    least = least_group(announce)
    sure = least - policy.max_colluders if announce.kind is Kind.SECAGG else 1
    honest = min(sure, plan.dp_honest)
    if honest < 1:
        raise PolicyRefusal(
            f"a sum over {least} people may hold the noise of nobody else, if {policy.max_colluders} devices "
            "work with the server (max_colluders)"
        )
    return Cost(layout.noise.rho(honest), most, min(plan.dp_participations, policy.sums_a_run))


def honest_in(announce: Announce, plan: Plan, people: int) -> int:
    """How many honest people's noise a sum over a roster of `people` holds, if the least group holds as many
    as the plan says: the threshold of that roster are in the sum. announce: as for `cost_of`."""
    least = least_group(announce)
    return plan.dp_honest + max(threshold(people) - least, 0)
