#include "common/metrics/metrics.h"

#include <httplib.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <chrono>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace mneme::metrics {

std::vector<double> LatencyBounds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
          1,     2.5,    5,     10,   20,    40,   80,  160,  300};
}

Registry::Registry() : registry_(std::make_unique<prometheus::Registry>()) {}
Registry::~Registry() = default;

Counter& Registry::AddCounter(const std::string& name, const std::string& help,
                              const Labels& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(*registry_).Add(labels);
}

Gauge& Registry::AddGauge(const std::string& name, const std::string& help, const Labels& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry_).Add(labels);
}

Histogram& Registry::AddHistogram(const std::string& name, const std::string& help,
                                  const std::vector<double>& bounds, const Labels& labels) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Register(*registry_)
      .Add(labels, bounds);
}

std::string Registry::Text() const {
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

struct MetricsServer::Http {
  httplib::Server server;
  std::jthread thread;
};

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& listen,
                                                                    const Registry& registry,
                                                                    std::function<bool()> ready) {
  const size_t colon = listen.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(listen.substr(colon + 1), &port)) {
    return absl::InvalidArgumentError(absl::StrCat("metrics_listen is not host:port: ", listen));
  }
  const std::string host = listen.substr(0, colon);
  auto http = std::make_unique<Http>();
  // The library's default would share a port that another process has.
  http->server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
  http->server.new_task_queue = [] { return new httplib::ThreadPool(2); };
  http->server.Get("/metrics", [&registry](const httplib::Request&, httplib::Response& response) {
    response.set_content(registry.Text(), "text/plain; version=0.0.4; charset=utf-8");
  });
  http->server.Get(
      "/healthz", [ready = std::move(ready)](const httplib::Request&, httplib::Response& response) {
        const bool is_ready = ready();
        response.status = is_ready ? 200 : 503;
        response.set_content(is_ready ? "ok\n" : "not ready\n", "text/plain");
      });
  if (port == 0) {
    port = http->server.bind_to_any_port(host.c_str());
  } else if (!http->server.bind_to_port(host.c_str(), port)) {
    port = -1;
  }
  if (port < 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen, ": is the port taken by another process?"));
  }
  http->thread = std::jthread([server = &http->server] { server->listen_after_bind(); });
  return std::unique_ptr<MetricsServer>(
      new MetricsServer(std::move(http), absl::StrCat(host, ":", port)));
}

MetricsServer::MetricsServer(std::unique_ptr<Http> http, std::string address)
    : http_(std::move(http)), address_(std::move(address)) {}

MetricsServer::~MetricsServer() {
  // stop() before listen_after_bind() has begun would be lost.
  while (!http_->server.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  http_->server.stop();
}

}  // namespace mneme::metrics
