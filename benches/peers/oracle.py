"""The operation and its gradients in float64, with numpy, in blocks of rows.

Plain attention and inducer attention (virtual key and virtual value from residual adapters) of one case share the
attention matrix, so they are computed together. Gradients are the closed form, not autograd:

    attn = softmax(σ Q Kᵀ) V,  λ = sigmoid(σ Q·P_k − lse),  P_k = Q + u B_k + b_k,  u = tanh(Q A_k + a_k)
    O    = attn + λ Δ,         Δ = h B_v + b_v,  h = tanh(Q A_v + a_v)
    ds0  = λ(1−λ) dO·Δ,        dS = P ∘ (dO Vᵀ − D),  D = dO·O − λ² dO·Δ   (plain: λ = 0)
"""

import numpy as np

BLOCK = 1024


def _f64(t):
    return t.detach().double().numpy()


def _attention_rows(q, k, scale, causal, first):
    """Probabilities and lse of the rows `first..` of one head."""
    s = scale * (q @ k.T)
    if causal:
        row = first + np.arange(q.shape[0])[:, None]
        s[np.arange(k.shape[0])[None, :] > row] = -np.inf
    top = s.max(axis=1, keepdims=True)
    p = np.exp(s - top)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    return p, (top + np.log(total))[:, 0]


def solve(inputs):
    """`{"plain": results, "inducer": results}`; results by the names of `engine.RESULTS`, `[H, ...]` each."""
    case = inputs.case
    q, k, v, d_o = (_f64(t)[0] for t in (inputs.q, inputs.k, inputs.v, inputs.d_o))
    key, value = ([_f64(t) for t in adapter] for adapter in (inputs.key, inputs.value))
    scale = case.head_dim**-0.5

    def zeros():
        r = {name: np.zeros_like(q) for name in ("o", "d_q", "d_k", "d_v")}
        r["lse"] = np.zeros(q.shape[:2])
        return r

    plain, inducer = zeros(), zeros()
    for side, adapter in (("key", key), ("value", value)):
        for part, tensor in zip(("down_weight", "down_bias", "up_weight", "up_bias"), adapter):
            inducer[f"d_{side}.{part}"] = np.zeros_like(tensor)

    for h in range(case.heads):
        a_k, abias_k, b_k, bbias_k = (t[h] for t in key)
        a_v, abias_v, b_v, bbias_v = (t[h] for t in value)
        for first in range(0, case.rows, BLOCK):
            rows = slice(first, min(first + BLOCK, case.rows))
            keys = slice(0, rows.stop if case.causal else case.rows)
            qi, gi, kj, vj = q[h, rows], d_o[h, rows], k[h, keys], v[h, keys]
            p, lse = _attention_rows(qi, kj, scale, case.causal, first)
            attn = p @ vj
            d_v = p.T @ gi
            d_p = gi @ vj.T

            u = np.tanh(qi @ a_k + abias_k)
            hidden = np.tanh(qi @ a_v + abias_v)
            up_k = u @ b_k + bbias_k
            delta = hidden @ b_v + bbias_v
            s0 = scale * np.sum(qi * (qi + up_k), axis=1)
            lam = 1.0 / (1.0 + np.exp(lse - s0))
            g_delta = np.sum(gi * delta, axis=1)
            ds0 = lam * (1 - lam) * g_delta

            outputs = {"plain": attn, "inducer": attn + lam[:, None] * delta}
            for name, r in (("plain", plain), ("inducer", inducer)):
                row = np.sum(gi * outputs[name], axis=1)
                if name == "inducer":
                    row -= lam**2 * g_delta
                d_s = p * (d_p - row[:, None])
                r["o"][h, rows] = outputs[name]
                r["lse"][h, rows] = lse
                r["d_q"][h, rows] = scale * (d_s @ kj)
                r["d_k"][h, keys] += scale * (d_s.T @ qi)
                r["d_v"][h, keys] += d_v

            c = (scale * ds0)[:, None]
            dz_k = c * (qi @ b_k.T) * (1 - u**2)
            dz_v = lam[:, None] * (gi @ b_v.T) * (1 - hidden**2)
            inducer["d_q"][h, rows] += c * (2 * qi + up_k) + dz_k @ a_k.T + dz_v @ a_v.T
            weighted = lam[:, None] * gi
            for side, dz, act, up in (("key", dz_k, u, c * qi), ("value", dz_v, hidden, weighted)):
                inducer[f"d_{side}.down_weight"][h] += qi.T @ dz
                inducer[f"d_{side}.down_bias"][h] += dz.sum(axis=0)
                inducer[f"d_{side}.up_weight"][h] += act.T @ up
                inducer[f"d_{side}.up_bias"][h] += up.sum(axis=0)
    return {"plain": plain, "inducer": inducer}


def error(got, reference):
    """‖got − reference‖ / ‖reference‖; infinite where `got` has a NaN."""
    got = got.detach().double().numpy().reshape(reference.shape)
    e = np.linalg.norm(got - reference) / max(np.linalg.norm(reference), np.finfo(float).tiny)
    return float(e) if np.isfinite(e) else float("inf")
