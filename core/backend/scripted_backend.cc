#include "core/backend/scripted_backend.h"

#include <netinet/in.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

namespace cpploop {
namespace {

[[nodiscard]] std::string letters(std::uint8_t wanted) {
  std::string text;
  if ((wanted & kWantReadable) != 0) {
    text += 'r';
  }
  if ((wanted & kWantWritable) != 0) {
    text += 'w';
  }
  return text.empty() ? "-" : text;
}

[[nodiscard]] std::string error_text(int error) {
  switch (error) {
    case EAGAIN:
      return "EAGAIN";
    case ECONNABORTED:
      return "ECONNABORTED";
    case ECONNRESET:
      return "ECONNRESET";
    case EINPROGRESS:
      return "EINPROGRESS";
    case EMFILE:
      return "EMFILE";
    case EPIPE:
      return "EPIPE";
    default:
      return std::to_string(error);
  }
}

[[nodiscard]] std::size_t total_size(std::span<const iovec> parts) noexcept {
  std::size_t size = 0;
  for (const iovec& part : parts) {
    size += part.iov_len;
  }
  return size;
}

}  // namespace

void ScriptedBackend::bring(int fd, std::string bytes) {
  assert(!bytes.empty());
  script(fd).incoming.push_back({.bytes = std::move(bytes)});
}

void ScriptedBackend::bring_datagram(int fd, std::string bytes) {
  script(fd).incoming.push_back({.bytes = std::move(bytes)});
}

void ScriptedBackend::bring_error(int fd, int error) {
  script(fd).incoming.push_back({.error = error});
}

void ScriptedBackend::bring_end(int fd) { script(fd).incoming.push_back({.end = true}); }

void ScriptedBackend::limit_send(int fd, std::size_t bytes) {
  assert(bytes > 0);
  script(fd).sends.push_back(IoResult::success(static_cast<std::int64_t>(bytes)));
}

void ScriptedBackend::fail_send(int fd, int error) {
  script(fd).sends.push_back(IoResult::failure(error));
}

void ScriptedBackend::bring_connection(int fd, int accepted) {
  script(fd).accepts.push_back(IoResult::success(accepted));
}

void ScriptedBackend::fail_accept(int fd, int error) {
  script(fd).accepts.push_back(IoResult::failure(error));
}

void ScriptedBackend::finish_connect_with(int fd, int error) {
  script(fd).connect_done = true;
  script(fd).connect_outcome = error;
}

void ScriptedBackend::reuse_number(int fd) {
  scripts_.erase(fd);
  registered_.erase(fd);
}

ChannelId ScriptedBackend::id_of(int fd) const {
  const auto found = registered_.find(fd);
  return found == registered_.end() ? ChannelId{} : found->second.channel;
}

std::uint8_t ScriptedBackend::told(int fd) const {
  const auto found = registered_.find(fd);
  return found == registered_.end() ? std::uint8_t{0} : found->second.told;
}

// Takes what the script lets it take, from the front of the parts.
IoResult ScriptedBackend::take_bytes(int fd, std::span<const iovec> parts) {
  Script& s = script(fd);
  const std::size_t offered = total_size(parts);
  s.offers.push_back(offered);
  std::size_t limit = offered;
  if (!s.sends.empty()) {
    const IoResult next = s.sends.front();
    s.sends.pop_front();
    if (!next.ok()) {
      s.room = s.room && !next.would_block();
      return next;
    }
    limit = std::min(offered, static_cast<std::size_t>(next.value));
    s.room = limit == offered;
  } else if (!s.room) {
    return IoResult::failure(EAGAIN);
  }
  std::size_t left = limit;
  for (const iovec& part : parts) {
    const std::size_t taken = std::min(left, part.iov_len);
    s.sent.append(static_cast<const char*>(part.iov_base), taken);
    left -= taken;
  }
  return IoResult::success(static_cast<std::int64_t>(limit));
}

IoResult ScriptedBackend::send(Channel& channel, std::span<const iovec> parts) noexcept {
  const IoResult result = take_bytes(channel.fd, parts);
  record("send", channel.fd, total_size(parts), result);
  return result;
}

IoResult ScriptedBackend::read(int fd, std::span<const iovec> parts) noexcept {
  const IoResult result = take_incoming(fd, {parts[0].iov_base, parts[0].iov_len});
  record("read", fd, total_size(parts), result);
  return result;
}

IoResult ScriptedBackend::write(int fd, std::span<const iovec> parts) noexcept {
  const IoResult result = take_bytes(fd, parts);
  record("write", fd, total_size(parts), result);
  return result;
}

IoResult ScriptedBackend::send_datagram(Channel& channel, const void* data, std::size_t size,
                                        const os::SocketAddress* to) noexcept {
  Script& s = script(channel.fd);
  IoResult result = IoResult::success(static_cast<std::int64_t>(size));
  if (!s.sends.empty()) {
    result = s.sends.front();
    s.sends.pop_front();
    s.room = s.room && !result.would_block();
  } else if (!s.room) {
    result = IoResult::failure(EAGAIN);
  }
  record("send", channel.fd, size, result);
  if (result.ok()) {
    std::string text(static_cast<const char*>(data), size);
    if (to != nullptr) {
      sockaddr_in name{};
      std::memcpy(&name, &to->storage, sizeof(name));
      text = "@" + std::to_string(ntohs(name.sin_port)) + " " + text;
    }
    s.datagrams.push_back(std::move(text));
  }
  return result;
}

int ScriptedBackend::start_connect(Channel& channel, const os::SocketAddress&) {
  const int error = script(channel.fd).connect_at_once;
  record("connect", channel.fd, error_text(error));
  if (error != EINPROGRESS) {
    return error;
  }
  set_wanted(channel, kWantWritable);
  channel.writable_since = polls_;
  const int refused = change_now(channel);
  return refused == 0 ? EINPROGRESS : refused;
}

void ScriptedBackend::note_change(Channel& channel) noexcept {
  if (!channel.dirty && channel.wanted != channel.registered && !abandoned_) {
    dirty_.push_back(channel.id);
    channel.dirty = true;
  }
}

int ScriptedBackend::change_now(Channel& channel) noexcept {
  if (abandoned_) {
    return 0;
  }
  record("tell", channel.fd, letters(channel.wanted));
  if (channel.wanted == 0) {
    registered_.erase(channel.fd);
  } else if (const int refusal = script(channel.fd).refusal; refusal != 0) {
    return refusal;
  } else {
    registered_[channel.fd] = {channel.id, channel.wanted};
  }
  channel.registered = channel.wanted;
  return 0;
}

void ScriptedBackend::apply_changes() {
  for (const ChannelId id : std::exchange(dirty_, {})) {
    Channel* channel = find(id);
    if (channel != nullptr && channel->dirty) {
      channel->dirty = false;
      if (channel->wanted != channel->registered) {
        (void)change_now(*channel);
      }
    }
  }
}

void ScriptedBackend::forget(Channel& channel) noexcept {
  if (channel.registered != 0) {
    (void)change_now(channel);
  }
}

std::uint32_t ScriptedBackend::ready_events(const Channel& channel) {
  const Script& s = script(channel.fd);
  switch (channel.kind) {
    case Channel::Kind::stream:
    case Channel::Kind::datagram:
      return (s.incoming.empty() ? 0U : kIoReadable) | (s.room ? kIoWritable : 0U);
    case Channel::Kind::accept:
      return s.accepts.empty() ? 0U : kIoReadable;
    case Channel::Kind::connect:
      return s.connect_done ? kIoWritable : 0U;
    case Channel::Kind::readiness:
      return (s.readable ? kIoReadable : 0U) | (s.room ? kIoWritable : 0U);
    case Channel::Kind::process:
    case Channel::Kind::none:
      break;
  }
  return 0;
}

void ScriptedBackend::find_ready() {
  for (const auto& [fd, registration] : registered_) {
    const Channel* channel = find(registration.channel);
    if (channel == nullptr) {
      continue;
    }
    std::uint32_t told = 0;
    if ((registration.told & kWantReadable) != 0) {
      told |= kIoReadable;
    }
    if ((registration.told & kWantWritable) != 0) {
      told |= kIoWritable;
    }
    if (const std::uint32_t events = ready_events(*channel) & told; events != 0) {
      found_.push_back({registration.channel, events});
    }
  }
}

IoResult ScriptedBackend::wait(std::int64_t timeout_ns) {
  ++waits_;
  ++polls_;
  found_.clear();
  woken_ = false;
  record("wait", -1, std::to_string(timeout_ns));
  if (!polls_to_come_.empty()) {
    Poll poll = std::move(polls_to_come_.front());
    polls_to_come_.pop_front();
    if (clock_ != nullptr) {
      clock_->advance(poll.elapsed_ns);
    }
    if (poll.meanwhile) {
      poll.meanwhile();
    }
    found_ = std::move(poll.events);
    if (poll.error != 0) {
      found_.clear();
      return IoResult::failure(poll.error);
    }
  } else {
    find_ready();
    if (found_.empty() && !wake_pending_) {
      if (timeout_ns < 0) {
        return IoResult::failure(EDEADLK);
      }
      if (clock_ != nullptr) {
        clock_->advance(timeout_ns);
      }
    }
  }
  woken_ = std::exchange(wake_pending_, false);
  return IoResult::success(static_cast<std::int64_t>(found_.size()) + (woken_ ? 1 : 0));
}

void ScriptedBackend::collect(ReadyQueue& ready) {
  ready.reserve(found_.size());
  for (const Event& event : found_) {
    ready.push(ReadyEntry::of_io(event.channel, event.io_events));
  }
  found_.clear();
}

IoResult ScriptedBackend::take_incoming(int fd, const ReceiveBuffer& buffer) {
  std::deque<Incoming>& incoming = script(fd).incoming;
  if (incoming.empty()) {
    return IoResult::failure(EAGAIN);
  }
  Incoming& next = incoming.front();
  if (next.end) {
    return IoResult::success(0);
  }
  if (next.error != 0) {
    const int error = next.error;
    incoming.pop_front();
    return IoResult::failure(error);
  }
  const std::size_t count = std::min(buffer.size, next.bytes.size());
  std::memcpy(buffer.data, next.bytes.data(), count);
  next.bytes.erase(0, count);
  if (next.bytes.empty()) {
    incoming.pop_front();
  }
  return IoResult::success(static_cast<std::int64_t>(count));
}

void ScriptedBackend::receive(Channel& channel) {
  read_for(channel, [this](const Channel& still, const ReceiveBuffer& room) {
    const IoResult result = take_incoming(still.fd, room);
    record("receive", still.fd, room.size, result);
    return result;
  });
}

void ScriptedBackend::receive_datagrams(Channel& channel) {
  auto* sink = static_cast<DatagramSink*>(channel.sink);
  const int fd = channel.fd;
  std::deque<Incoming>& incoming = script(fd).incoming;
  if (!incoming.empty() && incoming.front().error != 0) {
    const int error = incoming.front().error;
    incoming.pop_front();
    record("datagrams", fd, error_text(error));
    sink->on_receive_error(error);
    return;
  }
  std::vector<std::string> texts;
  while (!incoming.empty() && incoming.front().error == 0 && texts.size() < channel.batch) {
    texts.push_back(std::move(incoming.front().bytes));
    incoming.pop_front();
  }
  record("datagrams", fd, std::to_string(texts.size()));
  const os::SocketAddress from;
  std::vector<Datagram> datagrams;
  datagrams.reserve(texts.size());
  for (const std::string& text : texts) {
    datagrams.push_back({text.data(), text.size(), &from});
  }
  if (!datagrams.empty()) {
    (void)sink->on_datagrams(datagrams);
  }
}

void ScriptedBackend::accept(Channel& channel) {
  auto* sink = static_cast<AcceptSink*>(channel.sink);
  const int fd = channel.fd;
  const ChannelId id = channel.id;
  for (int i = channel.batch; i > 0; --i) {
    std::deque<IoResult>& accepts = script(fd).accepts;
    IoResult result = IoResult::failure(EAGAIN);
    if (!accepts.empty()) {
      result = accepts.front();
      accepts.pop_front();
    }
    record("accept", fd, result.ok() ? std::to_string(result.value) : error_text(result.error));
    if (result.ok()) {
      const bool more =
          sink->on_accepted(UniqueFd(static_cast<int>(result.value)), os::SocketAddress{});
      if (!more || find(id) == nullptr) {
        return;
      }
    } else if (result.error != ECONNABORTED) {
      if (!result.would_block()) {
        sink->on_accept_error(result.error);
      }
      return;
    }
  }
}

void ScriptedBackend::finish_connect(Channel& channel) {
  const int error = script(channel.fd).connect_outcome;
  set_wanted(channel, 0);
  note_change(channel);
  static_cast<ConnectSink*>(channel.sink)->on_connected(error);
}

void ScriptedBackend::record(std::string_view operation, int fd, std::string_view detail) {
  if (recording_) {
    std::string line(operation);
    if (fd >= 0) {
      line.append(" ").append(std::to_string(fd));
    }
    log_.push_back(line.append(" ").append(detail));
  }
}

void ScriptedBackend::record(std::string_view operation, int fd, std::size_t size,
                             const IoResult& result) {
  if (recording_) {
    record(operation, fd,
           std::to_string(size) + " -> " +
               (result.ok() ? std::to_string(result.value) : error_text(result.error)));
  }
}

}  // namespace cpploop
