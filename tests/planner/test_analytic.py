"""What shapes alone tell, against numbers worked out by hand for the tiny model."""

import dataclasses

import pytest

import tiny
from clip_jax.config.schema import ImageConfig
from clip_jax.planner import analytic

CFG = tiny.config("nowhere")  # 16 pairs; 2 layers of 4 tokens, 1 layer of 8; width and e 16


def changed(**model):
    return dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, **model))


def measure(cfg, data=1, fsdp=1, tensor=1):
    found, least = analytic.measure(cfg, {"data": data, "fsdp": fsdp, "tensor": tensor})
    return found, least, {(c.kind, c.axes): c for c in found.collectives}


def test_gradients_travel_in_the_type_of_the_towers_unless_micro_batches_add_them_up():
    found, _, sent = measure(CFG, data=4)
    assert sent["all-reduce", "data"].sent == pytest.approx(2 * found.parameters * 3 / 4)
    short = changed(dtype="bfloat16")
    assert measure(short, data=4)[2]["all-reduce", "data"].sent == found.parameters * 3 / 4
    parts = dataclasses.replace(short, num_microbatches=2)
    assert measure(parts, data=4)[2]["all-reduce", "data"].sent == 2 * found.parameters * 3 / 4


def test_between_slices_goes_what_each_has_summed():
    mesh = dataclasses.replace(CFG.mesh, num_slices=2)
    two = dataclasses.replace(CFG, mesh=mesh)
    one, _, within = measure(CFG, data=4)
    _, _, sent = measure(two, data=8)
    assert sent["all-reduce", "data"].sent == within["all-reduce", "data"].sent
    assert sent["all-reduce", "slices"].sent == pytest.approx(one.parameters / 4)
    texts = 16 // 8 * 16 * 4  # two texts a device, 16 floats
    assert sent["all-gather", "slices"].sent == texts
    assert sent["all-gather", "data"].sent == 2 * texts * 3


@pytest.mark.parametrize(("data", "hops"), [(8, 8), (2, 0)])
def test_a_ring_turns_inside_slices(data, hops):
    cfg = dataclasses.replace(CFG, loss=dataclasses.replace(CFG.loss, kind="softmax_ring"))
    mesh = dataclasses.replace(CFG.mesh, num_slices=2)
    sent = measure(dataclasses.replace(cfg, mesh=mesh), data=data)[2]
    block = 16 // data * 16 * 4  # floats of a device's texts
    # Texts there, forward and backward; their gradient there and back.
    assert sent["collective-permute", "slices"].sent == (2 + 2) * block
    inside = sent.get(("collective-permute", "data"))
    assert (inside.sent if inside else 0) == 3 * hops * block


def test_activations_are_summed_over_tensor():
    states = 2 * 4 * 16 + 1 * 8 * 16  # of a pair, over all layers
    of = lambda cfg, **mesh: measure(cfg, tensor=2, **mesh)[2]["all-reduce", "tensor"]  # noqa: E731
    twice_there_and_back = 16 * states * 4
    assert of(CFG).sent == 2 * 4 * twice_there_and_back / 2 and of(CFG).count == 4 * 3
    assert of(CFG, data=2).sent == of(CFG).sent / 2
    parts = dataclasses.replace(CFG, num_microbatches=2)
    assert of(parts).sent == 1.5 * of(CFG).sent and of(parts).count == 3 * of(CFG).count


@pytest.mark.parametrize(("kind", "blocks"), [("softmax", 2), ("softmax_chunked", 3)])
def test_streamed_losses_gather_the_texts_again(kind, blocks):
    cfg = dataclasses.replace(CFG, loss=dataclasses.replace(CFG.loss, kind=kind))
    sent = measure(cfg, data=4)[2]
    total = sent["all-gather", "data"].sent + sent["reduce-scatter", "data"].sent
    assert total == blocks * 4 * 16 * 4 * 3  # 4 texts of 16 floats, to three others


def test_least_memory_is_a_bound_from_below():
    full = changed(remat="full")
    state = measure(full)[0]
    assert measure(full)[1] >= 2 * state.parameters + state.optimizer + state.batch
    large = dataclasses.replace(CFG, batch_size=512)
    assert measure(large, tensor=2)[1] < measure(large)[1]
    offload = dataclasses.replace(large, model=dataclasses.replace(large.model, remat="offload"))
    assert measure(offload)[1] < measure(large)[1]


def test_feature_maps_of_a_resnet_are_kept():
    image = ImageConfig(kind="resnet", size=32, width=4, stages=(1, 1, 1, 1), heads=4)
    base = changed(image=image)
    inputs = 32 * 32 * 3 + 8 * 8 * (4 + 16) + 4 * 4 * 32 + 2 * 2 * 64 + 2 * 2 * 4 * 32  # and keys
    stem, rest = 16 * 16 * 8, 8 * 8 * 40 + 2 * 8 * 8 * 8 + 2 * 4 * 4 * 48 + 2 * 2 * 192 + 2 * 128

    def saved(**model):
        cfg = dataclasses.replace(base, model=dataclasses.replace(base.model, **model))
        return analytic.traced(cfg).saved

    texts = {r: of_texts(r) for r in ("full", "none")}
    assert saved(remat="full") - texts["full"] == 16 * 4 * inputs
    assert saved(remat="none") - texts["none"] == 16 * 4 * (inputs + stem + rest)
    still = dataclasses.replace(base, optim=dataclasses.replace(base.optim, rates=("image/.*=0",)))
    assert analytic.traced(still).saved == texts["none"]


def of_texts(remat):
    """What the text tower keeps, where the image tower keeps nothing."""
    frozen = changed(remat=remat)
    optim = dataclasses.replace(frozen.optim, rates=("image/.*=0",))
    return analytic.traced(dataclasses.replace(frozen, optim=optim)).saved


@pytest.mark.parametrize("pairs", [16, 32])  # as wide as the towers, and as their hidden layers
def test_gradients_are_no_saved_activations(pairs):
    def saved(b):
        return analytic.traced(dataclasses.replace(CFG, batch_size=b)).saved

    assert saved(pairs) > 0 and saved(pairs) / pairs == saved(11) / 11


def test_what_stands_still_has_no_gradient_and_an_average_takes_memory():
    cfg = tiny.config("x", batch_size=64)
    mesh = {"data": 2, "fsdp": 2, "tensor": 1}

    def seen(**optim):
        changed = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, **optim))
        return analytic.measure(changed, mesh)

    def sent(measure, kind):
        return sum(c.sent for c in measure.collectives if c.kind == kind and c.axes != "data+fsdp")

    (plain, least), (averaged, more) = seen(), seen(ema=0.9)
    params = plain.parameters
    assert averaged.optimizer - plain.optimizer == params and more - least == params
    (still, lower), (nothing, _) = seen(rates=("image/.*=0",)), seen(rates=("(?!logit/).*=0",))
    assert still.parameters == params and still.optimizer < plain.optimizer
    assert lower < least
    for kind in ("reduce-scatter", "all-reduce"):
        assert sent(nothing, kind) < 0.01 * sent(plain, kind)
        assert sent(nothing, kind) < sent(still, kind) < sent(plain, kind)
    assert sent(still, "all-gather") == sent(plain, "all-gather")
