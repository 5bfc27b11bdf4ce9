#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "core/net/readiness_watchers.h"
#include "core/os/platform.h"
#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::Callback;

TEST(WatchedProcessesTest, ABackendThatWatchesNoProcessesSaysSo) {
  testing::ScriptedEngine loop;
  Callback* callback = loop.host.make({});
  EXPECT_EQ(loop.engine.watchers().add_process(::getpid(), callback).error, ENOSYS);
  EXPECT_EQ(loop.engine.watchers().remove_process(::getpid()), nullptr);
  loop.host.drop(callback);
}

#if CPPLOOP_HAVE_KQUEUE

class WatchedProcessesOnKqueueTest : public ::testing::Test {
 protected:
  WatchedProcessesOnKqueueTest() : engine_(host_, BackendChoice::kqueue) {
    for (pid_t& child : children_) {
      child = ::fork();
      EXPECT_GE(child, 0);
      if (child == 0) {
        ::pause();
        ::_exit(0);
      }
    }
  }
  void TearDown() override {
    for (std::size_t i = 0; i < children_.size(); ++i) {
      kill(i);
      (void)::waitpid(children_[i], nullptr, 0);
    }
    engine_.close();
    EXPECT_EQ(host_.outstanding(), 0U);
  }

  // Returns when it has ended; its status is still to be taken.
  void kill(std::size_t index) {
    (void)::kill(children_[index], SIGKILL);
    siginfo_t info{};
    (void)::waitid(P_PID, static_cast<id_t>(children_[index]), &info, WEXITED | WNOWAIT);
  }
  void turn() {
    engine_.push_ready(ReadyEntry::of_token(host_.make({})));
    ASSERT_EQ(engine_.turn(), 0);
  }
  void drop(Token token) {
    ASSERT_NE(token, nullptr);
    host_.drop(token);
  }
  [[nodiscard]] ReadinessWatchers& watchers() { return engine_.watchers(); }

  testing::TestHost host_;
  Engine engine_;
  std::vector<pid_t> children_ = std::vector<pid_t>(2);
};

TEST_F(WatchedProcessesOnKqueueTest, EachChildNotifiesItsOwn) {
  Callback* first = host_.make({});
  Callback* second = host_.make({});
  ASSERT_EQ(watchers().add_process(children_[0], first).error, 0);
  ASSERT_EQ(watchers().add_process(children_[1], second).error, 0);
  kill(1);
  turn();
  EXPECT_EQ(first->notices, 0);
  EXPECT_EQ(second->notices, 1);
  drop(watchers().remove_process(children_[0]));
  drop(watchers().remove_process(children_[1]));
}

TEST_F(WatchedProcessesOnKqueueTest, OneIsWatchedOnce) {
  Callback* first = host_.make({});
  Callback* second = host_.make({});
  ASSERT_EQ(watchers().add_process(children_[0], first).error, 0);
  EXPECT_EQ(watchers().add_process(children_[0], second).error, EEXIST);
  host_.drop(second);
  drop(watchers().remove_process(children_[0]));
  EXPECT_EQ(watchers().remove_process(children_[0]), nullptr);
}

TEST_F(WatchedProcessesOnKqueueTest, OneThatIsRefusedLeavesNothing) {
  Callback* callback = host_.make({});
  kill(0);
  ASSERT_EQ(::waitpid(children_[0], nullptr, 0), children_[0]);
  EXPECT_EQ(watchers().add_process(children_[0], callback).error, ESRCH);
  EXPECT_EQ(watchers().remove_process(children_[0]), nullptr);
  host_.drop(callback);
}

TEST_F(WatchedProcessesOnKqueueTest, MayBeRemovedByWhatItNotifies) {
  Callback* callback = host_.make({});
  callback->function = [&] { drop(watchers().remove_process(children_[0])); };
  ASSERT_EQ(watchers().add_process(children_[0], callback).error, 0);
  kill(0);
  turn();
  EXPECT_EQ(callback->notices, 1);
  // Its place is taken by the next.
  Callback* next = host_.make({});
  ASSERT_EQ(watchers().add_process(children_[1], next).error, 0);
  kill(1);
  turn();
  EXPECT_EQ(next->notices, 1);
  drop(watchers().remove_process(children_[1]));
}

TEST_F(WatchedProcessesOnKqueueTest, ALoopThatClosesDropsThem) {
  Callback* callback = host_.make({});
  ASSERT_EQ(watchers().add_process(children_[0], callback).error, 0);
  engine_.close();
  EXPECT_EQ(callback->drops, 1);
}

#endif

}  // namespace
}  // namespace cpploop
