#!/bin/sh
# Removes from a virtual environment what a server never opens: installers, headers, test suites.
#   prune.sh /opt/venv
set -eu
cd "$1"/lib/python3*/site-packages

# Nothing is installed or compiled in a running container.
rm -rf pip pip-*.dist-info setuptools setuptools-*.dist-info pkg_resources _distutils_hack distutils-precedence.pth
rm -rf torch/include torch/share/cmake
rm -f ../../../bin/pip* ../../../bin/activate* ../../../bin/Activate.ps1

# PyTorch's own C++ test programs are as large as many a model. torch_shm_manager is what torch.multiprocessing runs.
rm -rf torch/test
if [ -d torch/bin ]; then find torch/bin -type f ! -name torch_shm_manager -delete; fi

# Test suites that the packages themselves do not import.
for package in matplotlib mpmath networkx numpy onnx sympy; do
  if [ -d "$package" ]; then find "$package" -depth -type d -name tests -exec rm -rf {} +; fi
done
rm -rf onnx/backend/test/data
