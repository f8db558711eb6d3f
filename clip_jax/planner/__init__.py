"""What a training run would need and take, without the devices that would run it."""

# What libtpu and jax read at their start: compile without a TPU, look for none, print nothing.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else one process at a time
}
