#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend/backend.h"
#include "core/os/clock.h"

namespace cpploop {

// A kernel for tests: it does what it was told for each descriptor's number, in the order it was
// told, and writes down what it was asked. It owns no kernel object, so any number will do. Like
// the kernel it is level-triggered and knows only the wishes that apply_changes() has told it.
// Belongs to the test's thread.
class ScriptedBackend final : public Backend {
 public:
  struct Event {
    ChannelId channel;
    std::uint32_t io_events;
  };
  // One poll, for a test that chooses what it finds instead of letting the scripts decide.
  struct Poll {
    int error = 0;
    std::vector<Event> events{};        // Delivered as they stand, stale ones too.
    std::function<void()> meanwhile{};  // Runs inside the wait, as another thread would.
    std::int64_t elapsed_ns = 0;
  };

  // `clock` moves while wait() waits; null when the test has no use for time.
  explicit ScriptedBackend(FakeClock* clock = nullptr) : clock_(clock) {}

  // What receiving from `fd` brings, one chunk a receive (the rest of a chunk that is larger than
  // the buffer comes next). An error comes once; the end of the stream stays.
  void bring(int fd, std::string bytes);
  void bring_error(int fd, int error);
  void bring_end(int fd);

  // What receiving datagrams from `fd` brings, by the batch until an error is in the way.
  void bring_datagram(int fd, std::string bytes);

  // What the next sends on `fd` do: take so many bytes at most, or fail. EAGAIN and a short send
  // leave the channel without room until make_room(). A send without a script takes everything
  // while there is room.
  void limit_send(int fd, std::size_t bytes);
  void fail_send(int fd, int error);
  void fill(int fd) { script(fd).room = false; }
  void make_room(int fd) { script(fd).room = true; }

  // What the next accepts on `fd` do. The new descriptor must be one that the test may have closed.
  void bring_connection(int fd, int accepted);
  void fail_accept(int fd, int error);

  // What connecting `fd` returns at once (EINPROGRESS by default), and what it comes to later.
  void answer_connect(int fd, int error) { script(fd).connect_at_once = error; }
  void finish_connect_with(int fd, int error);

  // The readiness of a watched descriptor, and the errno with which watching it is refused.
  void set_readable(int fd, bool readable) { script(fd).readable = readable; }
  void set_writable(int fd, bool writable) { script(fd).room = writable; }
  void refuse(int fd, int error) { script(fd).refusal = error; }

  // The number was closed and given to another file, without a word to the backend: the kernel has
  // forgotten what it was told, and the scripts are the new file's.
  void reuse_number(int fd);

  void next_poll(Poll poll) { polls_to_come_.push_back(std::move(poll)); }
  void interrupt_next_poll() { next_poll({.error = EINTR}); }
  // The next wait reports the wake-up descriptor.
  void wake() noexcept { wake_pending_ = true; }

  // The identity that a channel on `fd` has now, for an event to be delivered when it is stale.
  [[nodiscard]] ChannelId id_of(int fd) const;

  // The datagrams that went out, in order; one to an address has "@port " before it.
  [[nodiscard]] const std::vector<std::string>& sent_datagrams(int fd) {
    return script(fd).datagrams;
  }
  [[nodiscard]] const std::string& sent(int fd) { return script(fd).sent; }
  // How many bytes the kernel was offered by each send, in order.
  [[nodiscard]] const std::vector<std::size_t>& offers(int fd) { return script(fd).offers; }
  void forget_sent(int fd) {
    script(fd).sent.clear();
    script(fd).offers.clear();
  }
  // Wanted bits that the kernel has been told.
  [[nodiscard]] std::uint8_t told(int fd) const;
  [[nodiscard]] std::size_t waits() const noexcept { return waits_; }
  // Each operation on a line of its own: "send 7 100 -> 40", "receive 7 16384 -> EAGAIN".
  [[nodiscard]] const std::vector<std::string>& log() const noexcept { return log_; }
  void clear_log() noexcept { log_.clear(); }
  void set_recording(bool on) noexcept { recording_ = on; }

  [[nodiscard]] const char* name() const noexcept override { return "scripted"; }
  [[nodiscard]] IoResult send(Channel& channel, std::span<const iovec> parts) noexcept override;
  // Reading and writing by number follow the scripts of receiving and sending.
  [[nodiscard]] IoResult read(int fd, std::span<const iovec> parts) noexcept override;
  [[nodiscard]] IoResult write(int fd, std::span<const iovec> parts) noexcept override;
  [[nodiscard]] IoResult send_datagram(Channel& channel, const void* data, std::size_t size,
                                       const os::SocketAddress* to) noexcept override;
  [[nodiscard]] int start_connect(Channel& channel, const os::SocketAddress& address) override;
  // A wait without end that nothing could end is a test's mistake, and fails with EDEADLK.
  [[nodiscard]] IoResult wait(std::int64_t timeout_ns) override;
  void collect(ReadyQueue& ready) override;
  [[nodiscard]] bool woken() const noexcept override { return woken_; }
  void apply_changes() override;
  void close() noexcept override {
    registered_.clear();
    abandoned_ = true;
  }

 private:
  struct Incoming {
    std::string bytes{};
    int error = 0;
    bool end = false;
  };
  // What the test wants of one descriptor's number.
  struct Script {
    std::deque<Incoming> incoming{};
    std::deque<IoResult> sends{};
    std::deque<IoResult> accepts{};
    std::string sent{};
    std::vector<std::string> datagrams{};
    std::vector<std::size_t> offers{};
    int connect_at_once = EINPROGRESS;
    int connect_outcome = 0;
    bool connect_done = false;
    bool readable = false;
    bool room = true;
    int refusal = 0;
  };
  struct Registration {
    ChannelId channel{};
    std::uint8_t told = 0;
  };

  void note_change(Channel& channel) noexcept override;
  [[nodiscard]] int change_now(Channel& channel) noexcept override;
  void forget(Channel& channel) noexcept override;
  void receive(Channel& channel) override;
  void receive_datagrams(Channel& channel) override;
  void accept(Channel& channel) override;
  void finish_connect(Channel& channel) override;

  [[nodiscard]] Script& script(int fd) { return scripts_[fd]; }
  [[nodiscard]] IoResult take_incoming(int fd, const ReceiveBuffer& buffer);
  [[nodiscard]] IoResult take_bytes(int fd, std::span<const iovec> parts);
  [[nodiscard]] std::uint32_t ready_events(const Channel& channel);
  void find_ready();
  void record(std::string_view operation, int fd, std::string_view detail);
  void record(std::string_view operation, int fd, std::size_t size, const IoResult& result);

  FakeClock* clock_;
  std::map<int, Script> scripts_;
  // By number, as the kernel keeps them.
  std::map<int, Registration> registered_;
  std::vector<ChannelId> dirty_;
  std::deque<Poll> polls_to_come_;
  std::vector<Event> found_;
  std::vector<std::string> log_;
  std::size_t waits_ = 0;
  bool recording_ = true;
  bool wake_pending_ = false;
  bool woken_ = false;
};

}  // namespace cpploop
