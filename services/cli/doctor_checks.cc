#include "services/cli/doctor_checks.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/config/config.h"
#include "common/weights/model_files.h"
#include "services/cli/chat_settings.h"
#include "services/cli/child_process.h"
#include "services/cli/held_port.h"
#include "services/cli/local_redis.h"
#include "services/cli/model_registry.h"

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kGiB = int64_t{1} << 30;
// Beside the weights: pages of keys and values, activations, the other services.
constexpr int64_t kMemoryBesideModel = kGiB;
constexpr int64_t kLittleDisk = 2 * kGiB;
constexpr rlim_t kFewFiles = 1024;

// The value after "key   :" in the first line that has it.
std::string ValueOf(absl::string_view text, absl::string_view key) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (absl::StripAsciiWhitespace(parts.first) == key) {
      return std::string(absl::StripAsciiWhitespace(parts.second));
    }
  }
  return "";
}

// "  24048328 kB" in bytes, -1 where it is missing.
int64_t BytesOf(absl::string_view meminfo, absl::string_view key) {
  const std::string value = ValueOf(meminfo, key);
  int64_t kilobytes = 0;
  if (!absl::SimpleAtoi(value.substr(0, value.find(' ')), &kilobytes)) return -1;
  return kilobytes * 1024;
}

}  // namespace

Finding JudgeCpu(absl::string_view cpuinfo) {
  const std::string model = ValueOf(cpuinfo, "model name");
  const std::set<std::string> flags = absl::StrSplit(ValueOf(cpuinfo, "flags"), ' ');
  const auto has_all = [&flags](const std::vector<std::string>& names) {
    return std::all_of(names.begin(), names.end(),
                       [&](const std::string& name) { return flags.contains(name); });
  };
  const std::string name = absl::StrCat(model.empty() ? "unknown processor" : model, ", ",
                                        std::thread::hardware_concurrency(), " cores: ");
  if (!has_all({"avx2", "fma", "f16c"})) {
    return Finding::Bad(
        "processor", absl::StrCat(name, "no AVX2 with FMA and F16C"),
        "the plain kernels are used, which are many times slower: choose an x86-64 machine "
        "of 2013 or later, and pass its features on to a virtual machine");
  }
  std::vector<std::string> found = {"AVX2"};
  if (has_all({"avx512f", "avx512bw", "avx512vl", "avx512dq"})) {
    found.push_back("AVX-512");
    if (has_all({"avx512_vnni"})) found.push_back("VNNI");
    if (has_all({"avx512_bf16"})) found.push_back("BF16");
  }
  if (has_all({"amx_tile", "amx_int8"})) found.push_back("AMX");
  return Finding::Ok("processor", absl::StrCat(name, absl::StrJoin(found, ", ")));
}

Finding JudgeMemory(absl::string_view meminfo, int64_t model_bytes) {
  const int64_t total = BytesOf(meminfo, "MemTotal");
  const int64_t available = BytesOf(meminfo, "MemAvailable");
  if (available < 0) return Finding::Warning("memory", "cannot be found out", "see `free -h`");
  const std::string found =
      absl::StrCat(BytesText(available), " of ", BytesText(total), " are free");
  if (available >= model_bytes + kMemoryBesideModel) return Finding::Ok("memory", found);
  return Finding::Bad(
      "memory", found,
      absl::StrCat("the model needs ", BytesText(model_bytes), " for its weights and about ",
                   BytesText(kMemoryBesideModel),
                   " beside them: end other programs, or choose a smaller or more strongly "
                   "quantised model"));
}

Finding CheckPrograms() {
  std::vector<std::string> missing;
  for (const char* name : {"mneme-tokenizer", "mneme-executor", "mneme-memory", "mneme-gateway"}) {
    if (access(absl::StrCat(OwnFolder(), "/", name).c_str(), X_OK) != 0) missing.push_back(name);
  }
  if (missing.empty()) {
    return Finding::Ok("programs", absl::StrCat("mneme ", MNEME_VERSION, " in ", OwnFolder()));
  }
  return Finding::Bad("programs",
                      absl::StrCat("missing in ", OwnFolder(), ": ", absl::StrJoin(missing, ", ")),
                      "build them: make build");
}

Finding CheckOpenFiles() {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  const std::string found =
      limit.rlim_cur == RLIM_INFINITY ? "no limit" : absl::StrCat("at most ", limit.rlim_cur);
  if (limit.rlim_cur >= kFewFiles) return Finding::Ok("open files", found);
  return Finding::Warning("open files", found, "every stream takes some: ulimit -n 65536");
}

Finding CheckGpu() {
  if (access("/dev/nvidiactl", F_OK) != 0) {
    return Finding::Ok("graphics card", "none of NVIDIA's: models run on the processor");
  }
  return Finding::Ok("graphics card", "NVIDIA driver found (a CUDA build uses it)");
}

Finding CheckDisk(const std::string& what, const std::string& folder) {
  // The nearest folder that exists.
  fs::path path(folder);
  std::error_code error;
  while (!fs::exists(path, error) && path.has_relative_path()) path = path.parent_path();
  const fs::space_info space = fs::space(path, error);
  if (error)
    return Finding::Warning(what, absl::StrCat(folder, ": ", error.message()), "see `df -h`");
  const int64_t available = static_cast<int64_t>(space.available);
  const std::string found = absl::StrCat(BytesText(available), " free in ", folder);
  if (available >= kLittleDisk) return Finding::Ok(what, found);
  return Finding::Warning(what, found, "make room: sessions and models are stored there");
}

Finding CheckDataFolder(const DataFolder& folder) {
  const absl::Status made = folder.Create();
  if (made.ok()) return Finding::Ok("data folder", folder.path());
  return Finding::Bad("data folder", folder.path(), std::string(made.message()));
}

Finding CheckPort(const std::string& host, int port, const std::string& flag,
                  const DataFolder& folder) {
  const std::string what = absl::StrCat("port ", port);
  const absl::StatusOr<HeldPort> held = HeldPort::Take(host, port);
  if (held.ok()) return Finding::Ok(what, "free");
  const absl::StatusOr<v1::UpState> state = folder.ReadState();
  const std::string own = absl::StrCat(":", port);
  if (state.ok() && (absl::EndsWith(state->http(), own) || absl::EndsWith(state->grpc(), own))) {
    return Finding::Ok(what, "used by this data folder's `mneme up`");
  }
  return Finding::Warning(what, std::string(held.status().message()),
                          absl::StrCat("start with ", flag, " N (0 takes any free one)"));
}

Finding CheckRedisServer() {
  const std::string path = FindInPath("redis-server");
  if (!path.empty()) return Finding::Ok("redis-server", path);
  return Finding::Bad(
      "redis-server", "not found in PATH",
      "install it (apt-get install redis-server), or name a Redis of yours in --config");
}

Finding CheckModel(const DataFolder& folder, const std::string& model, int64_t* bytes) {
  *bytes = 0;
  const absl::StatusOr<NamedModel> found = ModelList(folder).Find(model);
  if (!found.ok()) {
    return Finding::Bad("model", model.empty() ? "no default model" : model,
                        std::string(found.status().message()));
  }
  const auto files = weights::ModelFiles::Open(found->path);
  if (!files.ok()) {
    return Finding::Bad("model", absl::StrCat(found->name, ", ", found->path),
                        absl::StrCat(files.status().message(), ": fetch or copy it again"));
  }
  *bytes = static_cast<int64_t>((*files)->weight_bytes());
  return Finding::Ok(
      "model",
      absl::StrCat(found->name, ", ", weights::ArchitectureName((*files)->config().architecture),
                   ", ", (*files)->file_type(), ", ", BytesText(*bytes)));
}

}  // namespace mneme::cli
