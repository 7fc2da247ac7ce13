// PyTorch's headers that every host file reads, compiled once a build (build_backend/cpu.py): without it each file would spend
// most of its compiler time on them. Files include what they need all the same.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>
