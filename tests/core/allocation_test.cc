// Memory that runs out, at every allocation in turn. This file replaces operator new for the whole
// test program; it fails only where a test of this file asks for it.

#include <gtest/gtest.h>

#include <cstdlib>
#include <new>
#include <optional>
#include <string>
#include <system_error>

#include "tests/core/support.h"

namespace {

// Allocations until one fails; below zero: none does.
thread_local long g_until_failure = -1;

[[nodiscard]] bool fails_now() noexcept { return g_until_failure >= 0 && g_until_failure-- == 0; }

[[nodiscard]] void* allocate(std::size_t size) {
  void* memory = fails_now() ? nullptr : std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size); }
void* operator new[](std::size_t size) { return allocate(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return allocate(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace cpploop {
namespace {

using testing::socket_pair;
using testing::SocketPair;
using testing::TestHost;

// Runs `operation` with the n-th allocation failing, for every n that it comes to; returns how many
// there were. `operation` gets through when none fails.
template <typename Operation>
long with_each_allocation_failing(Operation operation) {
  for (long n = 0;; ++n) {
    g_until_failure = n;
    operation(n);
    const bool reached = g_until_failure < 0;
    g_until_failure = -1;
    if (!reached || ::testing::Test::HasFailure()) {
      return n;
    }
  }
}

[[nodiscard]] int lowest_free_descriptor() {
  const UniqueFd probe = testing::some_fd();
  return probe.get();
}

TEST(AllocationTest, AnEngineThatCannotBeMadeLeavesNothing) {
  TestHost host;
  const int lowest = lowest_free_descriptor();
  const long count = with_each_allocation_failing([&](long) {
    try {
      Engine engine(host);
      engine.close();
    } catch (const std::bad_alloc&) {
    }
    const long left = std::exchange(g_until_failure, -1);
    EXPECT_EQ(lowest_free_descriptor(), lowest);
    g_until_failure = left;
  });
  EXPECT_GT(count, 2);
}

// The kernel tells of an edge once.
TEST(AllocationTest, WhatAWaitFoundIsThereWhenItCouldNotBeQueued) {
  class Reader final : public ReadinessSink {
   public:
    void hold() noexcept override {}
    void release() noexcept override {}
    void on_readable() override { ++readable; }
    void on_writable() override {}
    int readable = 0;
  };
  TestHost host;
  Engine engine(host);
  Backend& backend = engine.backend();
  const SocketPair pair = socket_pair();
  Reader reader;
  Channel channel;
  backend.attach(channel, pair.near_end.get(), Channel::Kind::readiness, &reader);
  ASSERT_EQ(backend.watch_after_read(channel), 0);
  ASSERT_EQ(::send(pair.far_end.get(), "x", 1, MSG_NOSIGNAL), 1);
  backend.apply_changes();
  ASSERT_TRUE(backend.wait(-1).ok());
  ReadyQueue full;
  g_until_failure = 0;
  try {
    for (;;) {
      full.push(ReadyEntry{});
    }
  } catch (const std::bad_alloc&) {
  }
  g_until_failure = 0;
  EXPECT_THROW(backend.collect(full), std::bad_alloc);
  g_until_failure = -1;
  ReadyQueue ready;
  backend.apply_changes();
  ASSERT_TRUE(backend.wait(-1).ok());
  backend.collect(ready);
  ASSERT_EQ(ready.size(), 1U);
  const ReadyEntry entry = ready.pop();
  backend.dispatch(entry.channel, entry.io_events);
  EXPECT_EQ(reader.readable, 1);
  backend.detach(channel);
  engine.close();
}

TEST(AllocationTest, APostThatFailsIsNotQueued) {
  with_each_allocation_failing([](long) {
    const long armed = std::exchange(g_until_failure, -1);
    TestHost host;
    WakeupInbox inbox;
    ReadyQueue ready;
    std::size_t posted = 0;
    std::vector<testing::Callback*> callbacks;
    for (int i = 0; i < 40; ++i) {
      callbacks.push_back(host.make({}));
    }
    g_until_failure = armed;
    for (testing::Callback* callback : callbacks) {
      try {
        posted += inbox.post(ReadyEntry::of_token(callback)) ? 1 : 0;
      } catch (const std::bad_alloc&) {
      }
    }
    for (int tries = 0; tries < 2 && inbox.has_posts(); ++tries) {
      try {
        inbox.drain_into(ready);
      } catch (const std::bad_alloc&) {
      }
    }
    EXPECT_EQ(ready.size(), posted);
  });
}

// A connection that sends half a megabyte in pieces to an end that reads it.
class Transfer final : public StreamEvents {
 public:
  Transfer() : pair_(socket_pair()), socket_(engine_, std::move(pair_.near_end), *this) {}
  ~Transfer() = default;
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // True when memory lasted.
  bool write(const char* data, std::size_t size) {
    const std::size_t dealt_with = socket_.begin_write(data, size);
    if (dealt_with == size) {
      return true;
    }
    try {
      socket_.queue(data + dealt_with, size - dealt_with, this);
      ++owners_;
      socket_.end_write();
      return true;
    } catch (const std::bad_alloc&) {
      (void)socket_.force_close();  // As a transport ends that could not keep what it was given.
      return false;
    }
  }
  void turn() {
    try {
      engine_.push_ready(ReadyEntry::of_native(&nothing_));
      (void)engine_.turn();
    } catch (const std::bad_alloc&) {
    }
  }
  void read_far_end(std::string& into) {
    char buffer[65536];
    ssize_t count = 0;
    while ((count = ::recv(pair_.far_end.get(), buffer, sizeof(buffer), 0)) > 0) {
      into.append(buffer, static_cast<std::size_t>(count));
    }
  }
  void finish() {
    (void)socket_.force_close();
    engine_.close();
    EXPECT_EQ(owners_, 0);
  }

  void hold() noexcept override {}
  void release() noexcept override {}
  ReceiveBuffer receive_buffer() override { return {}; }
  void on_bytes(std::size_t) override {}
  void on_end_of_stream() override {}
  void on_receive_error(int) override {}
  void on_send_error(int) override {}
  void on_shutdown_error(int) override {}
  void on_pause_writing() override {}
  void on_resume_writing() override {}
  void on_drained() override {}
  void on_closed_after_flush() override {}
  void drop_owner(WriteQueue::Owner) noexcept override { --owners_; }

 private:
  struct Nothing final : NativeCallback {
    void run() override {}
    void drop() noexcept override {}
  };

  Nothing nothing_;
  TestHost host_;
  Engine engine_{host_};
  SocketPair pair_;
  StreamSocket socket_;
  int owners_ = 0;
};

TEST(AllocationTest, WhatAConnectionSendsIsAPrefix) {
  std::string whole(512 * 1024, '\0');
  for (std::size_t i = 0; i < whole.size(); ++i) {
    whole[i] = static_cast<char>(i * 2654435761U >> 13);
  }
  const long count = with_each_allocation_failing([&](long n) {
    const long armed = std::exchange(g_until_failure, -1);
    std::string arrived;
    arrived.reserve(whole.size() + 1);
    std::optional<Transfer> transfer(std::in_place);
    g_until_failure = armed;
    constexpr std::size_t kPiece = 3000;
    std::size_t at = 0;
    while (at < whole.size() &&
           transfer->write(whole.data() + at, std::min(kPiece, whole.size() - at))) {
      at += std::min(kPiece, whole.size() - at);
    }
    for (int i = 0; i < 50; ++i) {
      transfer->turn();
      transfer->read_far_end(arrived);
    }
    const long left = std::exchange(g_until_failure, -1);
    transfer->finish();
    transfer.reset();
    EXPECT_EQ(whole.substr(0, arrived.size()), arrived) << "allocation " << n;
    if (at == whole.size()) {
      EXPECT_EQ(arrived.size(), whole.size()) << "allocation " << n;
    }
    g_until_failure = left;
  });
  EXPECT_GT(count, 3);
}

}  // namespace
}  // namespace cpploop
