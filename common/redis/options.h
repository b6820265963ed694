// How Redis is reached.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace mneme::redis {

// Which servers a client talks to.
enum class Mode {
  kSingle,    // one server
  kCluster,   // the masters of a Redis Cluster, each with a part of the keys
  kSentinel,  // the one master that Sentinels name
};

// Encryption of every connection, at least TLS 1.2. The server's certificate is always verified.
// Files are PEM and read again for every connection, so that a renewed one needs no restart.
struct TlsOptions {
  bool enabled = false;
  std::string ca_file;      // "": what the system trusts
  std::string certificate;  // of this client, where the server asks for one; "": none
  std::string key;          // of that certificate
  std::string server_name;  // that certificates must be for; "": the host of the address
};

// What it takes for a call to have succeeded.
enum class Ack {
  kServer,    // the server has answered
  kReplicas,  // and wait_for_replicas of its replicas have what it wrote
};

struct Options {
  Mode mode = Mode::kSingle;
  std::string address;  // host:port; kCluster and kSentinel: one more of `addresses`
  // kCluster: some of its nodes, the others are found. kSentinel: the Sentinels.
  std::vector<std::string> addresses = {};
  std::string master_name = {};  // kSentinel: what the Sentinels call the master
  std::string username = {};     // ACL user; "": the default one
  std::string password = {};     // "": no AUTH
  std::string sentinel_username = {};
  std::string sentinel_password = {};
  int database = 0;
  int pool_size = 8;  // connections to each server
  absl::Duration connect_timeout = absl::Seconds(1);
  absl::Duration command_timeout = absl::Seconds(5);
  // For calls that ask for Ack::kReplicas. 0: replicas are not waited for.
  int wait_for_replicas = 0;
  absl::Duration replica_timeout = absl::Seconds(1);  // and half of what a call has left
  TlsOptions tls = {};
};

// Returns `address` and `addresses`, each once.
std::vector<std::string> AddressesOf(const Options& options);

}  // namespace mneme::redis
