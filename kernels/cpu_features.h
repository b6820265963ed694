// What this machine's processor (x86-64) offers to the kernels. Used to choose their variants and
// to tell the operator (`mneme doctor`).
#pragma once

#include <string>

namespace mneme::kernels {

struct CpuFeatures {
  bool avx2 = false;         // with FMA and F16C
  bool avx512 = false;       // F, BW, VL, DQ
  bool avx512_vnni = false;  // with avx512
  bool avx512_bf16 = false;
  bool amx_int8 = false;  // only if the operating system lets this process use it
  bool amx_bf16 = false;
};

// Returns the features, found out once. Thread-safe.
const CpuFeatures& GetCpuFeatures();

// The instruction sets that the CPU operators are compiled for. Results differ between them in the
// last bits; a process stays with one.
// kAmx is kAvx512Vnni with products of many rows by AMX, and gives the same results to the last
// bit. In the order of preference.
enum class Variant { kPortable, kAvx2, kAvx512Vnni, kAmx };

// Returns the variant in use: the best that this processor has, unless set. Thread-safe.
Variant CurrentVariant();

// Returns "portable", "avx2", "avx512_vnni" or "amx".
const char* VariantName(Variant variant);

// Makes the kernels use another variant; false if the processor has it not. For tests and
// benchmarks: not while a kernel runs.
bool SetVariant(Variant variant);

}  // namespace mneme::kernels
