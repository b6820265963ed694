#include "services/cli/up_plan.h"

#include <openssl/rand.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/auth/api_keys.h"
#include "common/config/config.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/cli/local_redis.h"
#include "services/cli/model_registry.h"

namespace mneme::cli {
namespace {

constexpr char kLoopback[] = "127.0.0.1";
// In this order they stop: the gateway ends its streams while all it needs is still there.
enum StopRank { kGatewayStops, kExecutorStops, kStateStops, kRedisStops };
constexpr int kMasterKeyBytes = 32;
constexpr int kKillDelayMs = 5000;  // beyond a service's own grace time

bool IsLoopback(absl::string_view host) {
  return absl::StartsWith(host, "127.") || host == "localhost" || host == "::1" || host == "[::1]";
}

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp timestamp;
  const int64_t millis = absl::ToUnixMillis(time);
  timestamp.set_seconds(millis / 1000);
  timestamp.set_nanos(static_cast<int32_t>(millis % 1000) * 1'000'000);
  return timestamp;
}

class Planner {
 public:
  Planner(const v1::UpConfig& config, const DataFolder& folder)
      : config_(config), folder_(folder) {}

  absl::StatusOr<UpPlan> Plan() {
    ASSIGN_OR_RETURN(model_, ModelList(folder_).Find(config_.model()));
    plan_.state.set_pid(getpid());
    *plan_.state.mutable_started() = ToTimestamp(absl::Now());
    plan_.state.set_data(folder_.path());
    plan_.state.set_model(model_.name);
    plan_.state.set_model_path(model_.path);
    plan_.state.set_version(MNEME_VERSION);
    RETURN_IF_ERROR(PlanRedis());
    RETURN_IF_ERROR(PlanTokenizer());
    RETURN_IF_ERROR(PlanMemory());
    RETURN_IF_ERROR(PlanExecutors());
    RETURN_IF_ERROR(PlanGateway());
    return std::move(plan_);
  }

 private:
  absl::StatusOr<std::string> TakePort(const std::string& host, int port) {
    ASSIGN_OR_RETURN(HeldPort held, HeldPort::Take(host, port));
    plan_.ports.push_back(std::move(held));
    return plan_.ports.back().address();
  }

  absl::StatusOr<std::string> TakePublicPort(bool has_port, int port, int fallback,
                                             absl::string_view flag) {
    const int wanted = has_port ? port : fallback;
    if (wanted < 0 || wanted > 65535) {
      return absl::InvalidArgumentError(absl::StrCat(flag, " is not a port: ", wanted));
    }
    absl::StatusOr<std::string> taken = TakePort(host(), wanted);
    if (taken.ok()) return taken;
    return absl::Status(
        taken.status().code(),
        absl::StrCat(taken.status().message(), "\nchoose another one with ", flag, " N (0 takes ",
                     "any free one), or stop what listens there (`ss -ltnp` shows it)"));
  }

  std::string host() const { return config_.host().empty() ? kLoopback : config_.host(); }

  absl::Status PlanRedis() {
    redis_ = config_.redis();
    v1::ServiceState* state = plan_.state.mutable_redis();
    if (IsExternal(redis_)) {
      RETURN_IF_ERROR(CheckExternalRedis(redis_));
      std::vector<std::string> addresses(redis_.addresses().begin(), redis_.addresses().end());
      if (!redis_.address().empty()) addresses.insert(addresses.begin(), redis_.address());
      state->set_address(absl::StrJoin(addresses, ","));
      state->set_state("external");
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const std::string address, TakePort(kLoopback, 0));
    ASSIGN_OR_RETURN(LocalRedis local, PrepareLocalRedis(folder_, address));
    redis_ = local.connection;
    ServiceSpec spec;
    spec.name = "redis";
    spec.command = local.command;
    spec.health = local.health;
    spec.stop_rank = kRedisStops;
    AddService(std::move(spec), state);
    state->set_address(address);
    return absl::OkStatus();
  }

  // Fills in what all four services have alike, writes the configuration file and adds the service.
  template <typename Config>
  absl::Status Add(const std::string& name, const std::string& program, Config settings,
                   std::vector<std::string> after, StopRank stop_rank, int default_grace_ms) {
    const std::string path = absl::StrCat(OwnFolder(), "/", program);
    if (access(path.c_str(), X_OK) != 0) {
      return absl::NotFoundError(absl::StrCat(
          "the program is missing: ", path, "\nbuild it (`make build`); it must lie beside mneme"));
    }
    ASSIGN_OR_RETURN(const std::string metrics, TakePort(kLoopback, 0));
    settings.set_metrics_listen(metrics);
    settings.set_address_file(folder_.File(absl::StrCat("run/", name, ".address.json")));
    const std::string config_file = folder_.File(absl::StrCat("run/", name, ".json"));
    RETURN_IF_ERROR(config::WriteFileAtomically(config_file, config::ToJson(settings), 0600));
    ServiceSpec spec;
    spec.name = name;
    spec.command = {path, "--config", config_file};
    spec.ready_file = settings.address_file();
    spec.health = HealthzOf(metrics);
    spec.after = std::move(after);
    spec.stop_rank = stop_rank;
    spec.grace = absl::Milliseconds(
        kKillDelayMs + (settings.grace_ms() > 0 ? settings.grace_ms() : default_grace_ms));
    v1::ServiceState* state = &(*plan_.state.mutable_services())[name];
    state->set_metrics(metrics);
    AddService(std::move(spec), state);
    return absl::OkStatus();
  }

  void AddService(ServiceSpec spec, v1::ServiceState* state) {
    spec.log_path = folder_.File(absl::StrCat("logs/", spec.name, ".log"));
    state->set_log(spec.log_path);
    state->set_state(std::string(StateName(ServiceState::kWaiting)));
    plan_.services.push_back(std::move(spec));
  }

  void SetAddress(const std::string& name, const std::string& address) {
    (*plan_.state.mutable_services())[name].set_address(address);
  }

  absl::Status PlanTokenizer() {
    tokenizer::v1::TokenizerConfig settings = config_.tokenizer();
    ASSIGN_OR_RETURN(tokenizer_address_, TakePort(kLoopback, 0));
    settings.set_listen(tokenizer_address_);
    tokenizer::v1::TokenizerModel* model = settings.add_models();
    model->set_name(model_.name);
    model->set_path(model_.path);
    SetAddress("tokenizer", tokenizer_address_);
    return Add("tokenizer", "mneme-tokenizer", settings, {}, kStateStops, 10'000);
  }

  // Makes the data folder's master key at its first use. One that is lost is never replaced by a
  // new one where there are sessions: the memory service notices that it opens nothing.
  absl::StatusOr<std::string> MasterKeyFile() const {
    const std::string path = folder_.master_key_file();
    if (access(path.c_str(), F_OK) == 0) return path;
    unsigned char bytes[kMasterKeyBytes];
    if (RAND_bytes(bytes, sizeof(bytes)) != 1) {
      return absl::InternalError("the system gives no random numbers");
    }
    const std::string digits = absl::BytesToHexString(
        absl::string_view(reinterpret_cast<const char*>(bytes), sizeof(bytes)));
    RETURN_IF_ERROR(config::WriteFileAtomically(path, digits, 0600));
    return path;
  }

  absl::Status PlanMemory() {
    memory::v1::MemoryConfig settings = config_.memory();
    if (settings.master_key_file().empty()) {
      ASSIGN_OR_RETURN(*settings.mutable_master_key_file(), MasterKeyFile());
    }
    // What a bounded Redis has no room for goes to disk, unless another folder is named.
    memory::v1::TierConfig* tiers = settings.mutable_tiers();
    if (tiers->redis_budget_bytes() > 0 && tiers->disk_path().empty()) {
      tiers->set_disk_path(folder_.disk_tier());
    }
    ASSIGN_OR_RETURN(memory_address_, TakePort(kLoopback, 0));
    settings.set_listen(memory_address_);
    *settings.mutable_redis() = redis_;
    SetAddress("memory", memory_address_);
    std::vector<std::string> after;
    if (!IsExternal(config_.redis())) after.push_back("redis");
    return Add("memory", "mneme-memory", settings, after, kStateStops, 10'000);
  }

  absl::Status PlanExecutors() {
    const int count = std::max(config_.executors(), 1);
    for (int i = 0; i < count; ++i) {
      const std::string name = count == 1 ? "executor" : absl::StrCat("executor-", i);
      executor::v1::ExecutorConfig settings = config_.executor();
      ASSIGN_OR_RETURN(const std::string address, TakePort(kLoopback, 0));
      settings.set_listen(address);
      settings.set_model(model_.name);
      settings.set_model_path(model_.path);
      settings.set_memory_address(memory_address_);
      if (!config_.compute().empty()) settings.set_compute(config_.compute());
      if (!config_.device().empty()) settings.set_device(config_.device());
      if (count > 1 && settings.threads() == 0) {
        // Each would otherwise take every core, and they would be in each other's way.
        const int cores = static_cast<int>(std::thread::hardware_concurrency());
        settings.set_threads(std::max(1, cores / count));
      }
      executor_addresses_.push_back(address);
      executor_names_.push_back(name);
      SetAddress(name, address);
      RETURN_IF_ERROR(Add(name, "mneme-executor", settings, {}, kExecutorStops, 10'000));
    }
    return absl::OkStatus();
  }

  // The keys file to use: the one given, or the data folder's own if it holds a key.
  absl::StatusOr<std::string> KeysFile() const {
    if (!config_.keys_file().empty()) {
      RETURN_IF_ERROR(auth::LoadKeys(config_.keys_file()).status());
      return config_.keys_file();
    }
    const absl::StatusOr<std::vector<auth::KeyEntry>> own = auth::LoadKeys(folder_.keys_file());
    if (own.ok() && !own->empty()) return folder_.keys_file();
    if (!own.ok() && !absl::IsNotFound(own.status())) return own.status();
    if (IsLoopback(host())) return std::string();
    return absl::FailedPreconditionError(
        absl::StrCat("without API keys only this machine may reach the server, but the host is ",
                     host(), "\nmake a key with `mneme keys add`, or leave --host out"));
  }

  absl::Status PlanGateway() {
    gateway::v1::GatewayConfig settings = config_.gateway();
    ASSIGN_OR_RETURN(const std::string http,
                     TakePublicPort(config_.has_http_port(), config_.http_port(), kDefaultHttpPort,
                                    "--http-port"));
    ASSIGN_OR_RETURN(const std::string grpc,
                     TakePublicPort(config_.has_grpc_port(), config_.grpc_port(), kDefaultGrpcPort,
                                    "--grpc-port"));
    ASSIGN_OR_RETURN(const std::string keys, KeysFile());
    settings.set_http_listen(http);
    settings.set_grpc_listen(grpc);
    settings.set_tokenizer_address(tokenizer_address_);
    settings.set_memory_address(memory_address_);
    settings.clear_executor_addresses();
    for (const std::string& address : executor_addresses_) settings.add_executor_addresses(address);
    settings.set_default_model(model_.name);
    settings.set_keys_file(keys);
    plan_.state.set_http(http);
    plan_.state.set_grpc(grpc);
    SetAddress("gateway", grpc);
    std::vector<std::string> after = {"tokenizer", "memory"};
    after.insert(after.end(), executor_names_.begin(), executor_names_.end());
    return Add("gateway", "mneme-gateway", settings, after, kGatewayStops, 15'000);
  }

  const v1::UpConfig& config_;
  const DataFolder& folder_;
  UpPlan plan_;
  NamedModel model_;
  memory::v1::RedisConfig redis_;
  std::string tokenizer_address_;
  std::string memory_address_;
  std::vector<std::string> executor_addresses_;
  std::vector<std::string> executor_names_;
};

}  // namespace

absl::StatusOr<UpPlan> PlanUp(const v1::UpConfig& config, const DataFolder& folder) {
  return Planner(config, folder).Plan();
}

void UpdateState(const std::vector<ServiceStatus>& statuses, v1::UpState* state) {
  for (const ServiceStatus& status : statuses) {
    v1::ServiceState* service = status.name == "redis" ? state->mutable_redis()
                                                       : &(*state->mutable_services())[status.name];
    service->set_pid(status.pid);
    service->set_state(std::string(StateName(status.state)));
    service->set_restarts(status.restarts);
    if (status.pid != 0) *service->mutable_since() = ToTimestamp(status.since);
  }
}

}  // namespace mneme::cli
