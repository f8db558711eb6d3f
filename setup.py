"""The list of packages only: `configs/` ships inside the package, as clip_jax.configs."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["clip_jax", "clip_jax.*"], exclude=["*.__pycache__"]),
        "clip_jax.configs",
    ],
    package_dir={"clip_jax.configs": "configs"},
)
