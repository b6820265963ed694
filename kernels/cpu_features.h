// What this machine's processor offers to the kernels. Used to choose their variants and to tell
// the operator (`mneme doctor`).
#pragma once

#include <string>

namespace mneme::kernels {

struct CpuFeatures {
  bool avx2 = false;         // with FMA and F16C
  bool avx512 = false;       // F, BW, VL, DQ
  bool avx512_vnni = false;  // with avx512
  bool avx512_bf16 = false;
  bool amx_int8 = false;  // only if the kernel of the operating system allows it
  bool amx_bf16 = false;
};

// Returns the features, found out once. Thread-safe.
const CpuFeatures& GetCpuFeatures();

// Returns the variant that the kernels use here: "avx512_vnni", "avx2" or "portable".
// The environment can't change it; SetKernelVariant can.
const char* KernelVariant();

// Makes the kernels use another variant that this processor has; false if it has not. For tests and
// benchmarks: not while a kernel runs.
bool SetKernelVariant(const std::string& name);

}  // namespace mneme::kernels
