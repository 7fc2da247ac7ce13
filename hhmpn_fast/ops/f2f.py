"""f2f: every node of a sample reads every modality of it, then updates itself: Eqs 3-5 and 9-10 in one op.

q = v A    s_i = sum_j a_ij v_j,  a_ij softmax over the keys j of one modality of q_i . v_j
z_i = v_i + (sum_m s_i^m) W^v^T + D(relu(sum_m s_i^m C_m^T + b1) W^b^T + b2)

name      shape           meaning
v, z      (N, d)          nodes, modality-major           offsets  (M*B+1,) int32, segment m*B+b
query     (d, d)          A, as in v A                    hidden   (M, d, d)   C_m = W^r_m W^v
value     (d, d)          W^v                             output   (d, d)      W^b
"""

from __future__ import annotations

from hhmpn_fast.ops.op import Op
from hhmpn_fast.weights import BlockWeights

F2F = Op(
    "f2f(Tensor v, Tensor offsets, Tensor query, Tensor value, Tensor hidden, Tensor b1, Tensor output, Tensor b2, "
    "float p, Tensor? rng, int attention_site, int update_site) -> Tensor z",
    rows=("v",),
    weights=BlockWeights._fields,
)
