"""The losses by hand, in NumPy and float64, on one device; no code in common with the package."""

import numpy as np


def unit(z):
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def example(b=48, e=24, seed=0, log_scale=2.6, bias=-3.0, groups=0, negatives=0):
    """Embeddings, logit parameters and groups, as the losses get them."""
    rng = np.random.default_rng(seed)
    z = {"image": unit(rng.normal(size=(b, e))), "text": unit(rng.normal(size=(b, e)))}
    group = rng.integers(0, groups, b) if groups else np.arange(b)
    if negatives:
        z["negative"] = unit(rng.normal(size=(b, negatives, e)))
    logit = {"scale": np.float32(log_scale), "bias": np.float32(bias)}
    return z, logit, group.astype(np.int32)


def softmax(z, logit, group):
    """Loss; gradients by embeddings (named as in z), scale and bias."""
    parts = _parts(z, logit, group)
    x, y, s, same, b = (parts[k] for k in ("x", "y", "s", "same", "b"))
    target = same / same.sum(1, keepdims=True)
    rows, columns = _log_softmax(s, 1), _log_softmax(s, 0)
    columns[:, b:] = 0.0  # a hard negative asks for no image
    loss = -(target * (rows + columns)).sum() / (2 * b)
    caption = np.arange(s.shape[1]) < b
    pull = np.exp(columns) * caption - target
    ds = (np.exp(rows) - target + pull) / (2 * b)
    return loss, _gradients(ds, x, y, z, logit, s)


def sigmoid(z, logit, group):
    """Loss; gradients by embeddings (named as in z), scale and bias."""
    parts = _parts(z, logit, group)
    x, y, s, same, b = (parts[k] for k in ("x", "y", "s", "same", "b"))
    m = np.where(same > 0, s, -s)
    loss = np.logaddexp(0, -m).sum() / b
    ds = -np.where(same > 0, 1.0, -1.0) / (1 + np.exp(m)) / b
    return loss, _gradients(ds, x, y, z, logit, s)


def _parts(z, logit, group):
    x = z["image"].astype(np.float64)
    y = z["text"].astype(np.float64)
    b, e = x.shape
    same = (group[:, None] == group[None, :]).astype(np.float64)
    if "negative" in z:
        extra = z["negative"].astype(np.float64).reshape(-1, e)
        y = np.concatenate([y, extra])
        same = np.concatenate([same, np.zeros((b, len(extra)))], axis=1)
    s = np.exp(np.float64(logit["scale"])) * x @ y.T + np.float64(logit["bias"])
    return {"x": x, "y": y, "s": s, "same": same, "b": b}


def _gradients(ds, x, y, z, logit, s):
    scale, b = np.exp(np.float64(logit["scale"])), len(x)
    dy = scale * ds.T @ x
    grads = {
        "image": scale * ds @ y,
        "text": dy[:b],
        "scale": (ds * (s - np.float64(logit["bias"]))).sum(),
        "bias": ds.sum(),
    }
    if "negative" in z:
        grads["negative"] = dy[b:].reshape(z["negative"].shape)
    return grads


def _log_softmax(a, axis):
    a = a - a.max(axis, keepdims=True)
    return a - np.log(np.exp(a).sum(axis, keepdims=True))
