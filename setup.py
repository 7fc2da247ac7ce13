"""Build: the packages' places, and the C++ extension when a torch to build against is there."""

from setuptools import setup

setup(
    packages=["hhmpn_fast", "hhmpn_fast.ops", "hhmpn_fast.data", "hhmpn_fast.kernels"],
    package_dir={"hhmpn_fast": "hhmpn_fast", "hhmpn_fast.kernels": "kernels"},
)
