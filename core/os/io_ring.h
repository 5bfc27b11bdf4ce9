#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/os/io_result.h"

namespace cpploop::os {

// One completion, as the kernel reported it.
struct RingCompletion {
  std::uint64_t user_data = 0;
  std::int32_t result = 0;   // A value, or a negative errno.
  std::uint16_t buffer = 0;  // Which of the provided buffers holds the bytes.
  bool has_buffer = false;
  bool more = false;  // The operation goes on and will report again.
};

// An io_uring with its provided buffers: the one place that talks to liburing. Belongs to one
// thread, the one that opened it; another may only destroy it. Nothing is submitted before submit()
// or submit_and_wait().
class IoRing {
 public:
  static constexpr std::uint16_t kBuffers = 256;
  static constexpr std::size_t kBufferSize = 4096;

  // Null when the kernel refuses; `why` is then a step's name and its errno.
  struct Refusal {
    const char* step = "";
    int error = 0;
  };
  [[nodiscard]] static std::unique_ptr<IoRing> open(Refusal& refusal) noexcept;
  // False when this build was made without liburing.
  [[nodiscard]] static bool built() noexcept;

  ~IoRing();
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  // Each prepares one operation; false when the submission queue is full. What is sent must stay
  // where it is until the submission that takes it along is over: a send never waits for room.
  // Where sends_report_failure_only(), one that was submitted and reports nothing was sent whole.
  [[nodiscard]] bool poll(int fd, bool readable, std::uint64_t user_data) noexcept;
  [[nodiscard]] bool receive_many(int fd, std::uint64_t user_data) noexcept;
  [[nodiscard]] bool send(int fd, const void* data, std::size_t size,
                          std::uint64_t user_data) noexcept;
  [[nodiscard]] bool send_message(int fd, const msghdr* message, std::uint64_t user_data) noexcept;
  // Cancels the operation with this user_data; what is cancelled still reports its end.
  [[nodiscard]] bool cancel(std::uint64_t target, std::uint64_t user_data) noexcept;
  [[nodiscard]] bool cancel_all(std::uint64_t user_data) noexcept;

  // News from here on is also written to this eventfd; -1 ends that. 0 or an errno. (A poll of a
  // ring whose task-run is deferred reports nothing.)
  [[nodiscard]] int give_notice_to(int eventfd) noexcept;
  [[nodiscard]] bool sends_report_failure_only() const noexcept;
  // How many operations were prepared so far, and how many of them the kernel has not taken. It
  // takes them in their order.
  [[nodiscard]] std::uint32_t prepared() const noexcept;
  [[nodiscard]] unsigned unsubmitted() const noexcept;
  // Completions that found no room and come with the next submit().
  [[nodiscard]] bool has_overflow() const noexcept;
  // Completions to be had without a wait; true costs a submit() at most.
  [[nodiscard]] bool has_news() const noexcept;
  // Hands over what was prepared and lets the kernel finish what it can finish now.
  [[nodiscard]] IoResult submit() noexcept;
  // The same, and waits until `count` completions are there or the time is over (negative: very
  // long). EINTR when a signal ended the wait; the end of the time is no error.
  [[nodiscard]] IoResult submit_and_wait(unsigned count, std::int64_t timeout_ns) noexcept;

  // Completions that have come and were not consumed, oldest first.
  [[nodiscard]] unsigned ready() const noexcept;
  [[nodiscard]] RingCompletion at(unsigned index) const noexcept;
  void consume(unsigned count) noexcept;

  [[nodiscard]] const char* buffer(std::uint16_t id) const noexcept;
  void give_back(std::uint16_t id) noexcept;

 private:
  struct Implementation;
  explicit IoRing(std::unique_ptr<Implementation> implementation) noexcept;

  std::unique_ptr<Implementation> impl_;
};

}  // namespace cpploop::os
