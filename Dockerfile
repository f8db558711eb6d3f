# clip_jax for TPUs (the default) or NVIDIA GPUs:
#   docker build -t clip_jax .
#   docker build -t clip_jax --build-arg EXTRA=cuda .
#   docker run --privileged --net=host --shm-size=16g clip_jax train --config=... --workdir=gs://...
FROM python:3.12-slim
ARG EXTRA=tpu
WORKDIR /clip_jax
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRA},gcs,digits,hf,tensorboard,wandb]" \
    && pip install --no-cache-dir --no-deps open_clip_torch==3.3.0 # CLIP's merges, for the tokenizer
ENTRYPOINT ["clip_jax"]
