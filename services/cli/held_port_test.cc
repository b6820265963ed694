#include "services/cli/held_port.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "services/cli/probe.h"

namespace mneme::cli {
namespace {

// Listens as the services do; -1 where that is not possible.
int Listen(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 && listen(fd, 8) == 0) {
    return fd;
  }
  close(fd);
  return -1;
}

TEST(HeldPortTest, AServiceCanListenOnAHeldPortAgainAndAgain) {
  const absl::StatusOr<HeldPort> held = HeldPort::Take("127.0.0.1", 0);
  ASSERT_TRUE(held.ok()) << held.status();
  for (int i = 0; i < 3; ++i) {
    const int fd = Listen(held->port());
    ASSERT_GE(fd, 0);
    close(fd);
  }
}

TEST(HeldPortTest, FreePortsDifferFromEachOther) {
  std::vector<HeldPort> ports;
  for (int i = 0; i < 50; ++i) {
    absl::StatusOr<HeldPort> held = HeldPort::Take("127.0.0.1", 0);
    ASSERT_TRUE(held.ok()) << held.status();
    for (const HeldPort& other : ports) ASSERT_NE(other.port(), held->port());
    ports.push_back(*std::move(held));
  }
}

TEST(HeldPortTest, APortThatSomebodyListensOnIsUnavailable) {
  absl::StatusOr<HeldPort> held = HeldPort::Take("127.0.0.1", 0);
  ASSERT_TRUE(held.ok());
  const int port = held->port();
  const int fd = Listen(port);
  ASSERT_GE(fd, 0);
  *held = HeldPort();
  const absl::StatusOr<HeldPort> second = HeldPort::Take("127.0.0.1", port);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), testing::HasSubstr(std::to_string(port)));
  close(fd);
}

TEST(HeldPortTest, AHostThatIsNotThisMachineIsUnavailable) {
  EXPECT_EQ(HeldPort::Take("192.0.2.1", 0).status().code(), absl::StatusCode::kUnavailable);
}

TEST(ProbeTest, NobodyListeningIsNoAnswer) {
  const absl::StatusOr<HeldPort> held = HeldPort::Take("127.0.0.1", 0);
  ASSERT_TRUE(held.ok());
  EXPECT_EQ(Ask(HealthzOf(held->address()), absl::Seconds(5)), Probe::Outcome::kNoAnswer);
}

TEST(ProbeTest, AServerThatSaysNothingIsNoAnswer) {
  const absl::StatusOr<HeldPort> held = HeldPort::Take("127.0.0.1", 0);
  ASSERT_TRUE(held.ok());
  const int fd = Listen(held->port());
  ASSERT_GE(fd, 0);
  EXPECT_EQ(Ask(HealthzOf(held->address()), absl::Milliseconds(50)), Probe::Outcome::kNoAnswer);
  close(fd);
}

}  // namespace
}  // namespace mneme::cli
