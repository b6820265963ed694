// Prometheus metrics of one process and the small HTTP server that shows them.
//
// Names are mneme_<service>_<what>_<unit>, each with its help text. main.cc makes one Registry and
// passes it on; the metric references live as long as the registry.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"

namespace prometheus {
class Registry;
}

namespace mneme::metrics {

using Counter = prometheus::Counter;
using Gauge = prometheus::Gauge;
using Histogram = prometheus::Histogram;
using Labels = std::map<std::string, std::string>;

// Bounds in seconds for request durations: 1 ms to 5 min.
std::vector<double> LatencyBounds();

// Thread-safe. Asking for the same name and labels again returns the same metric.
class Registry {
 public:
  Registry();
  ~Registry();

  Counter& AddCounter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge& AddGauge(const std::string& name, const std::string& help, const Labels& labels = {});
  Histogram& AddHistogram(const std::string& name, const std::string& help,
                          const std::vector<double>& bounds, const Labels& labels = {});

  // Returns all metrics in Prometheus' text format.
  std::string Text() const;

 private:
  std::unique_ptr<prometheus::Registry> registry_;
};

// Serves GET /metrics, and GET /healthz (200 while `ready` returns true, else 503).
class MetricsServer {
 public:
  // `listen` is host:port; port 0 takes a free one. `registry` must outlive the server.
  // UNAVAILABLE: the port is taken.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& listen,
                                                              const Registry& registry,
                                                              std::function<bool()> ready);
  ~MetricsServer();

  // host:port that the server is bound to.
  const std::string& address() const { return address_; }

 private:
  struct Http;
  MetricsServer(std::unique_ptr<Http> http, std::string address);

  std::unique_ptr<Http> http_;
  std::string address_;
};

}  // namespace mneme::metrics
