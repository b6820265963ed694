#include "kernels/cpu_features.h"

#include <atomic>

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mneme::kernels {
namespace {

CpuFeatures Detect() {
  CpuFeatures features;
#ifdef __x86_64__
  __builtin_cpu_init();
  features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & (1u << 29)) == 0) features.avx2 = false;  // F16C
  features.avx512 = features.avx2 && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq");
  features.avx512_vnni = features.avx512 && __builtin_cpu_supports("avx512vnni");
  features.avx512_bf16 = features.avx512 && __builtin_cpu_supports("avx512bf16");
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & (1u << 24)) != 0) {
    // The tile registers' state is off until a process asks Linux for it (arch_prctl).
    constexpr long kArchReqXcompPerm = 0x1023;
    constexpr long kTileData = 18;
    if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0) {
      features.amx_int8 = (d & (1u << 25)) != 0;
      features.amx_bf16 = (d & (1u << 22)) != 0;
    }
  }
#endif
  return features;
}

enum Variant { kPortable, kAvx2, kAvx512Vnni };

Variant Best() {
  const CpuFeatures& features = GetCpuFeatures();
  return features.avx2 ? kAvx2 : kPortable;
}

std::atomic<Variant>& Chosen() {
  static std::atomic<Variant> variant{Best()};
  return variant;
}

}  // namespace

const CpuFeatures& GetCpuFeatures() {
  static const CpuFeatures features = Detect();
  return features;
}

const char* KernelVariant() {
  switch (Chosen().load(std::memory_order_relaxed)) {
    case kAvx512Vnni:
      return "avx512_vnni";
    case kAvx2:
      return "avx2";
    case kPortable:
      break;
  }
  return "portable";
}

bool SetKernelVariant(const std::string& name) {
  const CpuFeatures& features = GetCpuFeatures();
  if (name == "portable") {
    Chosen() = kPortable;
  } else if (name == "avx2" && features.avx2) {
    Chosen() = kAvx2;
  } else {
    return false;
  }
  return true;
}

}  // namespace mneme::kernels
