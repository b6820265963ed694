#include "kernels/cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

namespace mneme::kernels {
namespace {

CpuFeatures Detect() {
  CpuFeatures features;
  __builtin_cpu_init();
  features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kF16c = 1u << 29;  // GCC 12 has no name for it
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kF16c) == 0) features.avx2 = false;
  features.avx512 = features.avx2 && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq");
  features.avx512_vnni = features.avx512 && __builtin_cpu_supports("avx512vnni");
  features.avx512_bf16 = features.avx512 && __builtin_cpu_supports("avx512bf16");
  constexpr unsigned kAmxTile = 1u << 24;
  constexpr unsigned kAmxInt8 = 1u << 25;
  constexpr unsigned kAmxBf16 = 1u << 22;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxTile) != 0) {
    // Linux keeps the tile registers off until a process asks (arch_prctl).
    constexpr long kArchReqXcompPerm = 0x1023;
    constexpr long kTileData = 18;
    if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0) {
      features.amx_int8 = (d & kAmxInt8) != 0;
      features.amx_bf16 = (d & kAmxBf16) != 0;
    }
  }
  return features;
}

bool Has(Variant variant) {
  switch (variant) {
    case Variant::kAmx:
      return GetCpuFeatures().avx512_vnni && GetCpuFeatures().amx_int8;
    case Variant::kAvx512Vnni:
      return GetCpuFeatures().avx512_vnni;
    case Variant::kAvx2:
      return GetCpuFeatures().avx2;
    case Variant::kPortable:
      break;
  }
  return true;
}

Variant Best() {
  for (const Variant variant : {Variant::kAmx, Variant::kAvx512Vnni, Variant::kAvx2}) {
    if (Has(variant)) return variant;
  }
  return Variant::kPortable;
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

Variant CurrentVariant() { return Chosen().load(std::memory_order_relaxed); }

const char* VariantName(Variant variant) {
  switch (variant) {
    case Variant::kAmx:
      return "amx";
    case Variant::kAvx512Vnni:
      return "avx512_vnni";
    case Variant::kAvx2:
      return "avx2";
    case Variant::kPortable:
      break;
  }
  return "portable";
}

bool SetVariant(Variant variant) {
  if (!Has(variant)) return false;
  Chosen() = variant;
  return true;
}

}  // namespace mneme::kernels
