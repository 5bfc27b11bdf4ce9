#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/backend/backend.h"
#include "core/net/write_queue.h"
#include "core/os/shared_number.h"
#include "core/os/unique_fd.h"

namespace cpploop {

class Engine;

// What a stream socket tells its owner (the binding's transport). Every call but drop_owner() may
// run user code, so the socket leaves no invariant open when it makes one.
class StreamEvents : public Sink {
 public:
  [[nodiscard]] virtual ReceiveBuffer receive_buffer() = 0;
  // The buffer holds `count` bytes; zero gives it back unused.
  virtual void on_bytes(std::size_t count) = 0;
  virtual void on_end_of_stream() = 0;
  virtual void on_receive_error(int error) = 0;
  virtual void on_send_error(int error) = 0;
  // Whether somebody else could close the descriptor: then nothing is kept back for later.
  [[nodiscard]] virtual bool shares_descriptor() noexcept { return false; }
  virtual void on_pause_writing() = 0;
  virtual void on_resume_writing() = 0;
  // The end could not be sent when the last byte before it was out. The connection goes on.
  virtual void on_shutdown_error(int error) = 0;
  // A queue that had been waiting for the kernel is empty now.
  virtual void on_drained() = 0;
  // The last byte of a closing connection is out: connection_lost is due, here and now.
  virtual void on_closed_after_flush() = 0;
  virtual void drop_owner(WriteQueue::Owner owner) noexcept = 0;

 protected:
  ~StreamEvents() = default;
};

// A connected stream socket: its reading, its write queue with watermarks, and the states of
// closing. Belongs to the loop's thread.
class StreamSocket final : private StreamSink {
 public:
  static constexpr std::size_t kDefaultHighWater = 64 * 1024;
  static constexpr std::size_t kDefaultLowWater = kDefaultHighWater / 4;
  // Gathered bytes go out at the latest when they reach this.
  static constexpr std::size_t kGatherLimit = 64 * 1024;

  // Throws std::bad_alloc; `fd` still has the descriptor then.
  StreamSocket(Engine& engine, UniqueFd&& fd, StreamEvents& events);
  ~StreamSocket();
  StreamSocket(const StreamSocket&) = delete;
  StreamSocket& operator=(const StreamSocket&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  // Where somebody who shares the descriptor keeps its number, and something else once it has been
  // closed there. Null: nobody does. It has to live as long as the descriptor is held here.
  void share_number(int* number) noexcept { shared_number_.look_at(number); }
  [[nodiscard]] bool owns_descriptor() noexcept override { return shared_number_.is(fd_.get()); }

  // Reading.
  void start_reading() noexcept;
  void stop_reading_at_end() noexcept;
  // False when there was nothing to change, as asyncio's pause and resume are no-ops then.
  [[nodiscard]] bool pause_reading() noexcept;
  [[nodiscard]] bool resume_reading() noexcept;
  [[nodiscard]] bool is_reading() const noexcept { return !closing_ && !paused_; }
  // How many bytes the next read may bring: twice as many after a read that filled its buffer, half
  // after two that left most of it empty.
  [[nodiscard]] std::size_t receive_size() const noexcept { return receive_size_; }

  // Writing happens in two steps, so that the owner makes a lasting copy of only what must wait.
  // begin_write() returns how many bytes are dealt with; the rest goes to queue().
  [[nodiscard]] std::size_t begin_write(const void* data, std::size_t size);
  // Counts a write of `size` bytes in several pieces: true when they are to be sent as soon as they
  // are queued (by flush()), false when they may be gathered (by end_write()).
  [[nodiscard]] bool sends_at_once(std::size_t size) noexcept;
  // Throws std::bad_alloc, and then the owner is still the caller's.
  void queue(const void* data, std::size_t size, WriteQueue::Owner owner);
  // Ends a write that was queued in several pieces: sends or gathers, then judges the watermarks.
  void end_write();
  // Sends what was gathered in this callback, if anything was.
  void flush();
  // The same, but lets stay what is held for the callbacks that follow in the turn.
  void flush_unless_held();
  // Tries to send what is queued although the kernel was full, with all that follows from it.
  void retry_send();

  // Whether the backend is asked for bytes, and whether the queue waits for the kernel.
  [[nodiscard]] bool receives() const noexcept { return channel_.wants(kWantReadable); }
  [[nodiscard]] bool waits_for_kernel() const noexcept { return channel_.wants(kWantWritable); }
  [[nodiscard]] std::size_t queued_bytes() const noexcept { return queue_.size_bytes(); }
  void set_limits(std::size_t high, std::size_t low);
  [[nodiscard]] std::size_t high_water() const noexcept { return high_water_; }
  [[nodiscard]] std::size_t low_water() const noexcept { return low_water_; }
  [[nodiscard]] bool writing_paused() const noexcept { return writing_paused_; }

  [[nodiscard]] bool eof_written() const noexcept { return eof_; }
  [[nodiscard]] IoResult write_eof();

  // Closing. close() flushes first and returns true when nothing is left to send, so that the owner
  // schedules connection_lost; false when that comes later (or came before).
  [[nodiscard]] bool close();
  // Drops everything queued. True when connection_lost is now due and not yet scheduled.
  [[nodiscard]] bool force_close();
  [[nodiscard]] bool is_closing() const noexcept { return closing_; }
  // How often writes came after the connection was lost, plus one for the loss; 0 while it lives.
  [[nodiscard]] std::uint32_t lost_count() const noexcept { return lost_count_; }
  void count_lost_write() noexcept {
    if (lost_count_ != UINT32_MAX) {  // Zero would mean that the connection lives.
      ++lost_count_;
    }
  }
  // Ends the registration and gives the descriptor to the caller to close.
  [[nodiscard]] UniqueFd take_fd() noexcept;

 private:
  friend class Engine;

  static constexpr std::size_t kReceiveSizeMin = 16 * 1024;
  static constexpr std::size_t kReceiveSizeMax = 256 * 1024;
  // Larger writes go out at once: the system call is little against the copying then.
  static constexpr std::size_t kHeldMax = 16 * 1024;
  // A habit is believed after it was seen this often in a row.
  static constexpr std::uint8_t kHabitLearned = 2;
  // After so many writing callbacks in a row, none of which was followed by a slow one before the
  // next, what is written may be held until the turn ends.
  static constexpr std::uint8_t kQuickLearned = 4;

  void hold() noexcept override { events_.hold(); }
  void release() noexcept override { events_.release(); }
  [[nodiscard]] ReceiveBuffer receive_buffer() override;
  void on_received(IoResult result) override;
  void on_send_ready() override;
  [[nodiscard]] std::span<const iovec> parts_to_send(std::span<iovec> room) noexcept override;
  [[nodiscard]] bool on_sent(IoResult result) noexcept override;
  void on_send_due() override;

  [[nodiscard]] bool may_hold() const noexcept;
  // True for the first write of the current callback; keeps the habits' records.
  [[nodiscard]] bool note_write() noexcept;
  void adapt_receive_size(std::size_t received) noexcept;
  [[nodiscard]] IoResult send(std::span<const iovec> parts) noexcept;
  [[nodiscard]] IoResult shut_down() noexcept;
  void send_queue();
  void wait_for_kernel() noexcept;
  void maybe_pause_writing();
  void maybe_resume_writing();
  void drop_queue();
  void leave_kernel() noexcept;

  Engine& engine_;
  StreamEvents& events_;
  UniqueFd fd_;
  os::SharedNumber shared_number_;
  Channel channel_;
  WriteQueue queue_;

  std::size_t high_water_ = kDefaultHighWater;
  std::size_t low_water_ = kDefaultLowWater;
  std::size_t receive_size_ = kReceiveSizeMin;
  std::size_t receive_capacity_ = 0;
  std::uint64_t last_write_callback_ = 0;
  std::uint32_t writes_in_callback_ = 0;
  std::uint32_t lost_count_ = 0;
  int send_error_ = 0;  // Of a send that went out with a poll, until the owner is told.
  std::uint8_t habit_ = 0;
  std::uint8_t quick_ = 0;
  std::uint8_t small_reads_ = 0;
  bool closing_ = false;
  bool paused_ = false;
  bool eof_ = false;
  bool blocked_ = false;  // The kernel's buffer is full; the queue waits for on_send_ready().
  bool writing_paused_ = false;
  bool in_flush_list_ = false;
};

}  // namespace cpploop
