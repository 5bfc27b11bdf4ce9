#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/backend/backend.h"
#include "core/net/datagram_queue.h"
#include "core/os/process.h"
#include "core/os/shared_number.h"
#include "core/os/unique_fd.h"
#include "core/sched/ready_queue.h"

namespace cpploop {

class Engine;

enum class DatagramSent {
  done,
  full,    // The kernel had no room; nothing was sent.
  failed,  // The datagram is gone, and its owner knows.
};

// What a datagram socket tells its owner (the binding's transport). Every call but drop_owner() may
// run user code, so the socket leaves no invariant open when it makes one.
class DatagramEvents : public Sink {
 public:
  virtual void on_datagram(const Datagram& datagram) = 0;
  virtual void on_receive_error(int error) = 0;
  // A queued datagram met an error and is gone; the socket goes on with the next.
  virtual void on_send_error(int error) = 0;
  // Sends a queued datagram that has an address.
  [[nodiscard]] virtual DatagramSent send_addressed(QueuedDatagram::Owner owner) = 0;
  virtual void on_pause_writing() = 0;
  virtual void on_resume_writing() = 0;
  // The last datagram of a closing socket is out: connection_lost is due, here and now.
  virtual void on_closed_after_flush() = 0;
  virtual void drop_owner(QueuedDatagram::Owner owner) noexcept = 0;

 protected:
  ~DatagramEvents() = default;
};

// A datagram socket: its reading in batches, its send queue with watermarks, and the states of
// closing. Belongs to the loop's thread.
class DatagramSocket final : private DatagramSink, private NativeCallback {
 public:
  static constexpr std::size_t kDefaultHighWater = 64 * 1024;
  static constexpr std::size_t kDefaultLowWater = kDefaultHighWater / 4;
  // Whether a datagram can be larger than a slot of the batch: then each is received alone.
  enum class Sizes : std::uint8_t { fit_a_slot, any };

  // `header` is what a queued datagram counts beside its bytes. Throws std::bad_alloc; `fd`
  // still has the descriptor then.
  DatagramSocket(Engine& engine, UniqueFd&& fd, Sizes sizes, std::size_t header,
                 DatagramEvents& events);
  ~DatagramSocket();
  DatagramSocket(const DatagramSocket&) = delete;
  DatagramSocket& operator=(const DatagramSocket&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  // As StreamSocket's.
  void share_number(int* number) noexcept { shared_number_.look_at(number); }
  [[nodiscard]] bool owns_descriptor() noexcept override { return shared_number_.is(fd_.get()); }

  // Reading.
  void start_reading() noexcept;
  // False when there was nothing to change.
  [[nodiscard]] bool pause_reading() noexcept;
  [[nodiscard]] bool resume_reading() noexcept;
  [[nodiscard]] bool is_reading() const noexcept { return !closing_ && !paused_; }
  [[nodiscard]] bool paused() const noexcept { return paused_; }
  [[nodiscard]] bool receives() const noexcept { return started_ && is_reading(); }

  // Sending. With nothing queued a datagram is tried at once; what the kernel has no room for is
  // the caller's to queue.
  [[nodiscard]] bool sends_at_once() const noexcept { return queue_.empty(); }
  [[nodiscard]] IoResult send(const void* data, std::size_t size,
                              const os::SocketAddress* to) noexcept;
  // The kernel had no room: asks to be told when it has.
  void wait_for_kernel() noexcept;
  // Throws std::bad_alloc, and then the owner is still the caller's.
  void queue(const QueuedDatagram& datagram);
  void maybe_pause_writing();
  [[nodiscard]] std::span<const QueuedDatagram> queued() const noexcept { return queue_.items(); }

  [[nodiscard]] bool waits_for_kernel() const noexcept { return channel_.wants(kWantWritable); }
  [[nodiscard]] std::size_t queued_size() const noexcept { return queued_size_; }
  void set_limits(std::size_t high, std::size_t low);
  [[nodiscard]] std::size_t high_water() const noexcept { return high_water_; }
  [[nodiscard]] std::size_t low_water() const noexcept { return low_water_; }
  [[nodiscard]] bool writing_paused() const noexcept { return writing_paused_; }

  // Closing. close() sends what is queued first and returns true when nothing is, so that the owner
  // schedules connection_lost; false when that comes later (or came before).
  [[nodiscard]] bool close();
  // Drops everything queued. True when connection_lost is now due and not yet scheduled.
  [[nodiscard]] bool force_close();
  [[nodiscard]] bool is_closing() const noexcept { return closing_; }
  // How often something was sent after the end, plus one for the end; 0 before it.
  [[nodiscard]] std::uint32_t lost_count() const noexcept { return lost_count_; }
  // Datagrams that were received and lost for want of memory.
  [[nodiscard]] std::uint64_t dropped() const noexcept { return dropped_; }
  void count_lost_write() noexcept {
    if (lost_count_ != UINT32_MAX) {  // Zero would mean that the socket lives.
      ++lost_count_;
    }
  }
  // Ends the registration and gives the descriptor to the caller to close.
  [[nodiscard]] UniqueFd take_fd() noexcept;

 private:
  // A datagram that was received and could not be delivered yet.
  struct Held {
    os::SocketAddress from;
    std::string bytes;
  };

  void hold() noexcept override { events_.hold(); }
  void release() noexcept override { events_.release(); }
  [[nodiscard]] bool on_datagrams(std::span<const Datagram> datagrams) override;
  void on_receive_error(int error) override;
  void on_send_ready() override;
  // NativeCallback: delivers what is held.
  void run() override;
  void drop() noexcept override;

  [[nodiscard]] std::size_t deliver(std::span<const Datagram> datagrams);
  void keep(std::span<const Datagram> datagrams) noexcept;
  void schedule_held() noexcept;
  void deliver_held();
  [[nodiscard]] DatagramSent send_item(const QueuedDatagram& item);
  [[nodiscard]] bool send_queue();
  void put_back(const QueuedDatagram& item);
  void maybe_resume_writing();
  void drop_queue();
  void leave_kernel() noexcept;

  Engine& engine_;
  DatagramEvents& events_;
  UniqueFd fd_;
  os::SharedNumber shared_number_;
  Channel channel_;
  DatagramQueue queue_;
  // Of a batch whose delivery was interrupted; nothing is received before they are delivered.
  std::vector<Held> held_;
  const std::size_t header_;
  std::size_t queued_size_ = 0;
  std::size_t high_water_ = kDefaultHighWater;
  std::size_t low_water_ = kDefaultLowWater;
  std::uint64_t dropped_ = 0;
  std::uint64_t held_asked_ = 0;  // The turn in which what is held was last asked for.
  std::uint32_t lost_count_ = 0;
  bool started_ = false;
  bool closing_ = false;
  bool paused_ = false;
  bool writing_paused_ = false;
  bool held_scheduled_ = false;
};

}  // namespace cpploop
