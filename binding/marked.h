#pragma once

namespace cpploop {

// Sets a flag for the length of a scope.
class Marked {
 public:
  explicit Marked(bool& flag) noexcept : flag_(flag) { flag_ = true; }
  ~Marked() { flag_ = false; }
  Marked(const Marked&) = delete;
  Marked& operator=(const Marked&) = delete;

 private:
  bool& flag_;
};

}  // namespace cpploop
