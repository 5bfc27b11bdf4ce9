#include "binding/tls/bio_tap.h"

#include <algorithm>
#include <cstring>

#include "binding/tls/openssl.h"

namespace cpploop::tls {
namespace {

// Of OpenSSL's stable interface: what a BIO says of a call that is to be tried again, the mark of a
// BIO that stands before another one, and what putting one there tells it.
constexpr int kRetryFlags = 0x0F;
constexpr int kFilterType = 0x0200;
constexpr int kPushed = 6;
constexpr int kPopped = 7;

}  // namespace

BioTap::~BioTap() {
  if (installed()) {
    openssl().bio_set_data(reading_, nullptr);
    openssl().bio_set_data(writing_, nullptr);
  }
}

void* BioTap::method() noexcept {
  static void* const method = [] {
    const OpenSsl& functions = openssl();
    void* made = functions.bio_method_new(functions.bio_new_index() | kFilterType, "cpploop tap");
    if (made != nullptr) {
      functions.bio_method_set_read(made, &BioTap::read);
      functions.bio_method_set_write(made, &BioTap::write);
      functions.bio_method_set_control(made, &BioTap::control);
    }
    return made;
  }();
  return method;
}

void* BioTap::put_before(void* memory_bio, BioTap* tap) noexcept {
  const OpenSsl& functions = openssl();
  void* bio = method() == nullptr ? nullptr : functions.bio_new(method());
  if (bio == nullptr) {
    functions.clear_errors();
    return nullptr;
  }
  functions.bio_set_data(bio, tap);
  // The connection lets go of the memory BIO when it is given the tap, and the tap holds it.
  (void)functions.bio_up_ref(memory_bio);
  (void)functions.bio_push(bio, memory_bio);
  return bio;
}

void BioTap::install(void* ssl, void* incoming_bio, void* outgoing_bio) noexcept {
  const OpenSsl& functions = openssl();
  incoming_bio_ = incoming_bio;
  outgoing_bio_ = outgoing_bio;
  if (incoming_bio == outgoing_bio) {
    return;
  }
  void* reading = put_before(incoming_bio, this);
  void* writing = put_before(outgoing_bio, this);
  if (reading == nullptr || writing == nullptr) {
    for (void* bio : {reading, writing}) {
      if (bio != nullptr) {
        functions.bio_free_all(bio);
      }
    }
    return;
  }
  functions.set_rbio(ssl, reading);
  functions.set_wbio(ssl, writing);
  reading_ = reading;
  writing_ = writing;
}

std::size_t BioTap::look_into(void* memory_bio, bool& known_empty) const noexcept {
  const std::size_t waiting = openssl().bio_pending(memory_bio);
  known_empty = waiting == 0 && installed() && !exposed_;
  return waiting;
}

int BioTap::read(void* bio, char* into, int size) {
  const OpenSsl& functions = openssl();
  functions.bio_clear_flags(bio, kRetryFlags);
  auto* tap = static_cast<BioTap*>(functions.bio_get_data(bio));
  // What is in the memory BIO came first.
  if (tap != nullptr && tap->incoming_ != nullptr && !tap->incoming_->empty() && size > 0 &&
      tap->incoming() == 0) {
    std::span<const char>& rest = *tap->incoming_;
    const std::size_t count = std::min(rest.size(), static_cast<std::size_t>(size));
    std::memcpy(into, rest.data(), count);
    rest = rest.subspan(count);
    return static_cast<int>(count);
  }
  const int count = functions.bio_read(functions.bio_next(bio), into, size);
  functions.bio_copy_next_retry(bio);
  return count;
}

int BioTap::write(void* bio, const char* data, int size) {
  const OpenSsl& functions = openssl();
  functions.bio_clear_flags(bio, kRetryFlags);
  auto* tap = static_cast<BioTap*>(functions.bio_get_data(bio));
  const auto wanted = static_cast<std::size_t>(std::max(size, 0));
  if (tap != nullptr) {
    // What is in the memory BIO goes out first.
    if (tap->room_ != nullptr && wanted <= tap->room_->size() && tap->outgoing() == 0) {
      std::memcpy(tap->room_->data(), data, wanted);
      *tap->room_ = tap->room_->subspan(wanted);
      return size;
    }
    tap->outgoing_empty_ = false;
  }
  const int count = functions.bio_write(functions.bio_next(bio), data, size);
  functions.bio_copy_next_retry(bio);
  return count;
}

long BioTap::control(void* bio, int command, long number, void* object) {
  if (command == kPushed || command == kPopped) {
    return 0;
  }
  void* memory_bio = openssl().bio_next(bio);
  return memory_bio == nullptr ? 0 : openssl().bio_ctrl(memory_bio, command, number, object);
}

}  // namespace cpploop::tls
