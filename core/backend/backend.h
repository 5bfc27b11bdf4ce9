#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/os/datagram_batch.h"
#include "core/os/io_result.h"
#include "core/os/ledger.h"
#include "core/os/socket_ops.h"
#include "core/sched/ready_queue.h"

// The seam between the engine and the operating system. It takes operations (start receiving on a
// stream, send these parts, accept, connect, wait for readiness), not readiness alone, so that a
// completion-based kernel interface can stand behind it as well as epoll. Everything here belongs
// to the loop's thread.
namespace cpploop {

// What a poll found for one channel; the bits travel through the ready queue.
enum IoEvents : std::uint32_t {
  kIoReadable = 1U << 0,
  kIoWritable = 1U << 1,
  // Bytes that were to go out with the poll are still there: send them now.
  kIoSendDue = 1U << 2,
};

// The bits of Channel::wanted.
enum Wanted : std::uint8_t {
  kWantReadable = 1U << 0,
  kWantWritable = 1U << 1,
};

struct ReceiveBuffer {
  void* data = nullptr;
  std::size_t size = 0;  // Zero: the sink cannot take bytes now and has dealt with the reason.
};

// The five kinds of receiver a channel can have. `hold` and `release` bracket every delivery, so
// that a receiver which is dropped by what it delivers outlives the call.
class Sink {
 public:
  virtual void hold() noexcept = 0;
  virtual void release() noexcept = 0;
  // Whether the number is still the file it was taken for. Others may hold the same file, and may
  // have closed it: then nothing must be read from the number, sent to it or told of it.
  [[nodiscard]] virtual bool owns_descriptor() noexcept { return true; }

 protected:
  ~Sink() = default;
};

class StreamSink : public Sink {
 public:
  [[nodiscard]] virtual ReceiveBuffer receive_buffer() = 0;
  // The outcome of one receive into that buffer: a count, 0 for the end of the stream, or an errno.
  // EAGAIN only gives the buffer back.
  virtual void on_received(IoResult result) = 0;
  // The kernel takes bytes again after a send() that could not take all.
  virtual void on_send_ready() = 0;

  // Only after send_with_poll(). What is to go out with the poll, in parts put into `room`; the
  // bytes stay where they are until on_sent(), which comes before anything else can run.
  [[nodiscard]] virtual std::span<const iovec> parts_to_send(std::span<iovec> /*room*/) noexcept {
    return {};
  }
  // What became of them. Runs no user code; true asks for on_send_due() as a callback.
  [[nodiscard]] virtual bool on_sent(IoResult /*result*/) noexcept { return false; }
  // The bytes did not go out with a poll, not all of them: send them now.
  virtual void on_send_due() {}

 protected:
  ~StreamSink() = default;
};

class DatagramSink : public Sink {
 public:
  // Datagrams in the order they came, at least one. False ends this delivery.
  [[nodiscard]] virtual bool on_datagrams(std::span<const Datagram> datagrams) = 0;
  virtual void on_receive_error(int error) = 0;
  // The kernel takes datagrams again after one that it could not take.
  virtual void on_send_ready() = 0;

 protected:
  ~DatagramSink() = default;
};

class AcceptSink : public Sink {
 public:
  // False stops the batch (the listener was closed, or the loop is to stop).
  [[nodiscard]] virtual bool on_accepted(UniqueFd fd, const os::SocketAddress& peer) = 0;
  virtual void on_accept_error(int error) = 0;

 protected:
  ~AcceptSink() = default;
};

class ConnectSink : public Sink {
 public:
  virtual void on_connected(int error) = 0;  // 0 for success.

 protected:
  ~ConnectSink() = default;
};

class ReadinessSink : public Sink {
 public:
  virtual void on_readable() = 0;
  virtual void on_writable() = 0;

 protected:
  ~ReadinessSink() = default;
};

// One descriptor as the backend sees it. It lives inside its owner (a stream socket, a listener, a
// watcher), which detaches it before closing the descriptor.
struct Channel {
  enum class Kind : std::uint8_t { none, stream, datagram, accept, connect, readiness, process };

  int fd = -1;  // Of a process its number.
  Kind kind = Kind::none;
  std::uint8_t wanted = 0;      // What the owner asked for (Wanted bits).
  std::uint8_t registered = 0;  // What the kernel has been told; the backend's own.
  bool dirty = false;           // In the backend's list of changes to tell; the backend's own.
  bool send_due = false;        // In the list of sends of the next poll; the backend's own.
  bool edge = false;            // The kernel tells of what is new alone; the backend's own.
  bool resting = false;         // Registered so, and wanted by nobody now; the backend's own.
  bool accepts_one = false;     // Connections come one by one; the backend's own.
  // Accepts at most per delivery; datagrams at most per system call.
  std::uint16_t batch = 0;
  std::uint16_t accepted_in = 0;  // The poll of the last accepts, as far as it fits in here.
  ChannelId id{};
  // The poll in which reading or writing was last asked for: events of that same poll belong to an
  // earlier registration and are dropped.
  std::uint64_t readable_since = 0;
  std::uint64_t writable_since = 0;
  Sink* sink = nullptr;
  [[no_unique_address]] ledger::Ticket ticket;  // Which file the number stood for.

  [[nodiscard]] bool attached() const noexcept { return kind != Kind::none; }
  [[nodiscard]] bool wants(Wanted what) const noexcept { return (wanted & what) != 0; }
};

class Backend {
 public:
  Backend() = default;
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  [[nodiscard]] virtual const char* name() const noexcept = 0;

  // Gives the channel its identity. Throws std::bad_alloc. Nothing is watched yet.
  void attach(Channel& channel, int fd, Channel::Kind kind, Sink* sink);
  // Forgets the channel: whatever was polled for it is dropped from now on. The descriptor is the
  // owner's to close, after this call. Harmless on a channel that is not attached.
  void detach(Channel& channel) noexcept;

  // Streams and datagrams. Reading delivers through StreamSink or DatagramSink until stopped.
  void start_receive(Channel& channel) noexcept;
  void stop_receive(Channel& channel) noexcept;
  // Sends now what the kernel takes now. EAGAIN: nothing was taken.
  [[nodiscard]] virtual IoResult send(Channel& channel, std::span<const iovec> parts) noexcept = 0;
  // True where a send costs less when it goes out with the next poll than when it is made at once.
  [[nodiscard]] bool batches_sends() const noexcept { return batches_sends_; }
  // Sends with the next poll what the sink's parts_to_send() says then. Throws std::bad_alloc.
  void send_with_poll(Channel& channel);
  [[nodiscard]] bool has_sends_due() const noexcept { return !sends_.empty(); }
  // No poll follows: sends now what was to go out with it. Runs user code, as a callback does.
  void send_what_is_due();
  // Right after a wait, before anything else runs: tells the sinks what became of their sends.
  void settle_sends() noexcept {
    if (sends_out_ != 0) {
      finish_sends();
    }
  }
  // Sends one datagram now, to the connected peer when `to` is null. EAGAIN: it was not taken.
  [[nodiscard]] virtual IoResult send_datagram(Channel& channel, const void* data, std::size_t size,
                                               const os::SocketAddress* to) noexcept = 0;
  // Asks for on_send_ready() until stopped.
  void want_send_ready(Channel& channel) noexcept;
  void stop_send_ready(Channel& channel) noexcept;

  // Listeners.
  void start_accept(Channel& channel, std::uint16_t batch) noexcept;
  void stop_accept(Channel& channel) noexcept;

  // Connects; the outcome is returned when it is known at once (EINPROGRESS: on_connected follows).
  [[nodiscard]] virtual int start_connect(Channel& channel, const os::SocketAddress& address) = 0;

  // Readiness of a descriptor that somebody else reads and writes. Told to the kernel at once, so
  // that a refusal (EPERM for a regular file, EBADF) is the caller's error: an errno, 0 for
  // success.
  [[nodiscard]] int watch(Channel& channel, Wanted what) noexcept;
  void unwatch(Channel& channel, Wanted what) noexcept;
  // The same two for one who waits often, and only after a read that found nothing: rest() leaves
  // the registration to the next watch_after_read(), which then costs no system call. An event that
  // comes meanwhile takes it away. The caller vouches that the number is the file it was.
  [[nodiscard]] int watch_after_read(Channel& channel) noexcept;
  void rest(Channel& channel) noexcept;

  // Whether watch() takes the end of a child process as a channel's readiness, which comes once.
  // Where it does not, a process may have a descriptor.
  [[nodiscard]] virtual bool watches_processes() const noexcept { return false; }

  // What somebody who watches a descriptor reads and writes there: pipes and terminals, say. By
  // number, because several of them may share one.
  [[nodiscard]] virtual IoResult read(int fd, std::span<const iovec> parts) noexcept = 0;
  [[nodiscard]] virtual IoResult write(int fd, std::span<const iovec> parts) noexcept = 0;

  // A scope in which the loop's thread may be without the lock that keeps other threads out: from
  // before it gives it up for a wait until it has it again. What another thread asks for meanwhile
  // must not touch what the wait uses.
  class Blocking {
   public:
    explicit Blocking(Backend& backend) noexcept : backend_(backend) { backend_.blocking_ = true; }
    ~Blocking() { backend_.blocking_ = false; }
    Blocking(const Blocking&) = delete;
    Blocking& operator=(const Blocking&) = delete;

   private:
    Backend& backend_;
  };

  // Waits until something happens or `timeout_ns` is over (negative: for ever; zero: only a look)
  // and appends what happened to `ready`. The value is the count of events; EINTR is an error like
  // others. Memory for the events is reserved before the wait.
  [[nodiscard]] virtual IoResult wait(std::int64_t timeout_ns) = 0;
  // The second half of a poll: queues the events of the last wait, in the kernel's order.
  virtual void collect(ReadyQueue& ready) = 0;
  // True when the last wait reported the wake-up descriptor.
  [[nodiscard]] virtual bool woken() const noexcept = 0;

  // Runs one queued event: does the operation and tells the channel's sink. An event whose
  // registration is gone is dropped.
  void dispatch(ChannelId id, std::uint32_t io_events);

  // Tells the kernel about changes that were put off to the next poll; of all channels, or of one
  // whose descriptor others may close or use before that.
  virtual void apply_changes() = 0;
  void apply_change(Channel& channel) noexcept {
    if (channel.attached()) {
      (void)change_now(channel);
    }
  }

  // True while there is something for a poll to do besides the wake-up descriptor.
  [[nodiscard]] bool has_channels() const noexcept {
    return watched_ != 0 || !sends_.empty() || !unsent_.empty();
  }
  [[nodiscard]] std::size_t attached_count() const noexcept { return attached_; }

  // In a forked child: the kernel objects are the parent's as well and must not be edited; only
  // close descriptors from here on.
  virtual void abandon_after_fork() noexcept { abandoned_ = true; }
  // Gives up the kernel objects. Channels may still be detached afterwards; nothing else works.
  virtual void close() noexcept = 0;

 protected:
  // What this channel wants has changed; tell the kernel now or at the next poll.
  virtual void note_change(Channel& channel) noexcept = 0;
  [[nodiscard]] virtual int change_now(Channel& channel) noexcept = 0;
  virtual void forget(Channel& channel) noexcept = 0;
  virtual void receive(Channel& channel) = 0;
  virtual void receive_datagrams(Channel& channel) = 0;
  virtual void accept(Channel& channel) = 0;
  virtual void finish_connect(Channel& channel);
  virtual void finish_sends() noexcept {}

  // Has a stream's sink make room and tells it what `read(channel, room)` found. Making room may
  // run the user's code, and that may close the connection: then there is nothing to be read.
  template <typename Read>
  void read_for(const Channel& channel, Read read) {
    auto* sink = static_cast<StreamSink*>(channel.sink);
    const ChannelId id = channel.id;
    const ReceiveBuffer room = sink->receive_buffer();
    if (room.size == 0) {
      return;
    }
    Channel* still = find(id);
    sink->on_received(still == nullptr ? IoResult::failure(EAGAIN) : read(*still, room));
  }

  [[nodiscard]] Channel* find(ChannelId id) const noexcept {
    if (id.slot >= slots_.size()) {
      return nullptr;
    }
    const Slot& slot = slots_[id.slot];
    return slot.generation == id.generation ? slot.channel : nullptr;
  }
  void set_wanted(Channel& channel, std::uint8_t wanted) noexcept;

  std::uint64_t polls_ = 1;  // The serial number of the newest poll.
  bool abandoned_ = false;
  bool blocking_ = false;
  bool batches_sends_ = false;
  bool has_edges_ = false;         // Whether the kernel can tell of what is new alone.
  std::vector<ChannelId> sends_;   // To go out with the next poll. An id may be stale by then.
  std::vector<ChannelId> unsent_;  // Did not go out whole: on_send_due() is to follow.
  unsigned sends_out_ = 0;         // Handed to the kernel and not settled yet.

 private:
  struct Slot {
    Channel* channel = nullptr;
    std::uint32_t generation = 1;
    std::uint32_t next_free = 0;
  };
  static constexpr std::uint32_t kNoSlot = UINT32_MAX;

  [[nodiscard]] bool is_due(const Channel& channel, Wanted what) const noexcept;
  void ask(Channel& channel, Wanted what) noexcept;
  void unask(Channel& channel, Wanted what) noexcept;

  std::vector<Slot> slots_;
  std::uint32_t free_slot_ = kNoSlot;
  std::size_t watched_ = 0;  // Channels that want something.
  std::size_t attached_ = 0;
};

}  // namespace cpploop
