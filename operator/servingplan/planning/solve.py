"""Allocation and routing in one mixed-integer linear program.

Variables: x[k, s], requests per second of class k on setup s; n[s, g], replicas of setup s on the nodes of group g; d[k], what
of class k is refused; o[s], minimum replicas that do not fit.

    sum_s x[k,s] + d[k] = rate_k                      every class is served or refused
    sum_k x[k,s] / U[k,s] <= n[s]                     load in units of a replica's capacity at the SLO
    sum_s floor(units_s / a) n[s,g] <= sum_node floor(free_node / a)    for every replica size a in a group of nodes
    units per accelerator <= limit,  cost <= budget,  min_s - o[s] <= n[s] <= max_s

U is the capacity of one replica for the class's own token mix and SLO. A setup serves all its classes from one queue, so the
class whose SLO allows it the least utilisation sets the utilisation for all of them. The rows by replica size are exact when
sizes divide one another (1, 2, 4, 8), as they do for tensor parallel sizes, and valid in general. Nodes are grouped by the
accelerators that match them, so accelerators of several plans may overlap.

Three solves, each with the optimum of the one before it as a constraint: least unmet minimum and refused weight; most quality;
least cost and units. A class whose SLO no setup keeps at any load is planned for the least relaxed SLO that one does, and the
plan says that it is infeasible: a number that is too small must not turn into an outage.

With replicas given the same program shares out what stands. Then nothing is refused beyond what the plan itself refuses; the
largest overload of any setup is made least instead, since a replica that is late beats an error while others start.

RouterWise (arXiv 2604.10907) is the source of the joint problem; replicas, percentile capacities and exactness are ours.
"""

from __future__ import annotations

import numpy as np

from servingplan.planning.answer import answer
from servingplan.planning.columns import Frame, frame
from servingplan.planning.problem import Plan, Problem
from servingplan.planning.program import Program, Solution


def solve(problem: Problem) -> Plan:
    """The best plan that the SLOs and the accelerators allow; with its proof, and never empty.

    Args:
        problem: All plans that share the cluster, in any order.

    Returns:
        A decision per plan in the order of their keys. Equal problems give equal plans.
    """
    standing = problem.fixed_replicas is not None
    asked = frame(problem.plans, last_resort=standing)
    if not asked.columns:
        return answer(asked, _nothing(asked), {})
    program = Program(problem, asked)
    solution = program.solve()
    lacking = not standing and (solution.refused.sum() > 0 or solution.unmet.sum() > 0.5)
    return answer(asked, solution, program.shortages() if lacking else {})


def _nothing(asked: Frame) -> Solution:
    """What a problem without a single setup comes to: everything is refused."""
    rates = np.array([entry.rate_rps for _, entry in asked.classes])
    none = np.zeros(0)
    return Solution(np.zeros((len(rates), 0)), none, rates, none, none, "optimal", 0.0)
