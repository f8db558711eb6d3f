"""Against OpenCLIP itself: a random ViT of another shape than the goldens, features and loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import open_clip_weights as oc
import pytest

from clip_jax.losses.softmax import softmax_loss
from clip_jax.models import dual

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def pair():
    from parity_open_clip import open_clip, torch

    torch.manual_seed(3)
    theirs = open_clip.CLIP(
        embed_dim=20,
        vision_cfg={
            "image_size": 24, "patch_size": 6, "width": 24, "layers": 3, "head_width": 12,
        },
        text_cfg={"context_length": 9, "vocab_size": 60, "width": 16, "layers": 3, "heads": 4},
        quick_gelu=True,
    )  # fmt: skip
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.05 * torch.randn_like(p))
    base = oc.model_config("vit_quickgelu")
    cfg = dataclasses.replace(
        base,
        embed_dim=20,
        image=dataclasses.replace(
            base.image, size=24, patch=6, width=24, layers=3, heads=2, mlp_dim=96
        ),
        text=dataclasses.replace(
            base.text, context=9, vocab_size=60, width=16, layers=3, heads=4, mlp_dim=64, eos_id=59
        ),
    )
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    return theirs.eval(), dual.build(cfg), jax.tree.map(jnp.asarray, oc.params(state, cfg))


def test_features_and_loss(pair):
    from parity_open_clip import open_clip, torch

    theirs, ours, params = pair
    rng = np.random.default_rng(0)
    image = rng.normal(size=(6, 24, 24, 3)).astype(np.float32)
    ids = rng.integers(1, 58, (6, 9)).astype(np.int32)
    ids[np.arange(6), rng.integers(3, 9, 6)] = 59
    with torch.no_grad():
        z_image = theirs.encode_image(torch.from_numpy(image.transpose(0, 3, 1, 2)), normalize=True)
        z_text = theirs.encode_text(torch.from_numpy(ids.astype(np.int64)), normalize=True)
        want = open_clip.ClipLoss()(z_image, z_text, theirs.logit_scale.exp())
    z = {
        "image": dual.unit(jax.jit(ours.image_features)(params, image)),
        "text": dual.unit(jax.jit(ours.text_features)(params, ids)),
    }
    np.testing.assert_allclose(z["image"], z_image.numpy(), atol=1e-5)
    np.testing.assert_allclose(z["text"], z_text.numpy(), atol=1e-5)
    got, _ = softmax_loss(z, params["logit"], jnp.arange(6))
    assert abs(float(got) - float(want)) < 1e-5
