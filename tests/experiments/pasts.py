"""Where settings are chosen: pasts of the data, before the test part (rolling origin, Tashman 2000).

`data.time_cutoff` cuts the time at a moment and the data knows no later one; what remains is split as the
whole is: the first three quarters to learn from, the last quarter to be judged on. The test part begins at
0.75.
"""

from __future__ import annotations

CASES = ((0.75, 100), (0.65, 101), (0.55, 102), (0.75, 103), (0.65, 104), (0.55, 105))
"""(data.time_cutoff, seed)"""
