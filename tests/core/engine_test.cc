#include "core/engine.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::Callback;
using testing::Lines;
using testing::ScriptedEngine;
using testing::some_fd;
using testing::StreamOwner;
using testing::TestHost;

class EngineTest : public ::testing::Test {
 protected:
  [[nodiscard]] Engine& engine() { return loop_.engine; }
  [[nodiscard]] ScriptedBackend& backend() { return *loop_.backend; }
  [[nodiscard]] std::function<void()> says(std::string line) {
    return [this, line = std::move(line)] { log_.push_back(line); };
  }
  Callback* watch(Wanted what, std::function<void()> function) {
    Callback* callback = loop_.host.make(std::move(function));
    EXPECT_EQ(engine().watchers().add(fd_.get(), what, callback).error, 0);
    return callback;
  }
  [[nodiscard]] std::string last_wait() const {
    for (auto line = loop_.backend->log().rbegin(); line != loop_.backend->log().rend(); ++line) {
      if (line->starts_with("wait")) {
        return *line;
      }
    }
    return "never";
  }

  ScriptedEngine loop_;
  UniqueFd fd_ = some_fd();
  Lines log_;
};

// The order of a turn.

TEST_F(EngineTest, IoRunsBehindWhatWasReadyAndTimersBehindIo) {
  watch(kWantReadable, says("io"));
  backend().set_readable(fd_.get(), true);
  loop_.call_at(0, says("timer"));
  loop_.call_soon(says("ready 1"));
  loop_.call_soon(says("ready 2"));
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"ready 1", "ready 2", "io", "timer"}));
}

TEST_F(EngineTest, WhatACallbackSchedulesWaitsForTheNextTurn) {
  loop_.call_soon([&] {
    log_.emplace_back("first");
    loop_.call_soon(says("third"));
  });
  loop_.call_soon(says("second"));
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"first", "second"}));
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"first", "second", "third"}));
}

TEST_F(EngineTest, ATurnInsideACallbackRunsWhatIsQueued) {
  loop_.call_soon([&] {
    log_.emplace_back("before");
    EXPECT_TRUE(engine().in_callback());
    EXPECT_EQ(engine().turn_once(), 0);
    EXPECT_TRUE(engine().in_callback());
    log_.emplace_back("after");
    loop_.call_soon(says("later"));
  });
  loop_.call_soon(says("second"));
  loop_.call_at(0, says("timer"));
  ASSERT_EQ(engine().turn(), 0);
  // The timer was taken along by the turn around it.
  EXPECT_EQ(log_, (Lines{"before", "second", "timer", "after", "later"}));
  EXPECT_EQ(loop_.host.outstanding(), 0U);
}

TEST_F(EngineTest, ATurnInsideACallbackKeepsItsInterruptToItself) {
  loop_.call_soon([&] {
    loop_.call_soon([&] { engine().interrupt(); });
    loop_.call_soon(says("next"));
    EXPECT_EQ(engine().turn_once(), 0);
    log_.emplace_back("caller");
  });
  ASSERT_EQ(engine().turn(), 0);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"caller", "next"}));
}

TEST_F(EngineTest, CallbacksAndTimersCanBeDropped) {
  loop_.call_soon(says("ready"));
  loop_.call_at(0, says("timer"));
  engine().drop_ready_callbacks();
  EXPECT_TRUE(engine().ready().empty());
  EXPECT_EQ(loop_.host.outstanding(), 1U);
  engine().drop_timers();
  EXPECT_EQ(loop_.host.outstanding(), 0U);
  engine().set_stopping(true);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_TRUE(log_.empty());
}

TEST_F(EngineTest, WhatTheLastTurnScheduledRunsBeforeTheNextPollsEvents) {
  watch(kWantReadable, says("io"));
  loop_.call_soon([&] {
    loop_.call_soon(says("scheduled"));
    backend().set_readable(fd_.get(), true);
  });
  ASSERT_EQ(engine().turn(), 0);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"scheduled", "io"}));
}

TEST_F(EngineTest, TimerThatIsDueAgainAtOnceDoesNotStarveTheTurn) {
  int runs = 0;
  std::function<void()> again = [&] {
    ++runs;
    loop_.call_at(0, again);
  };
  loop_.call_at(0, again);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(runs, 1);
}

TEST_F(EngineTest, DueTimersRunByDeadlineAndThenByAge) {
  loop_.call_at(20, says("20"));
  loop_.call_at(10, says("10 a"));
  loop_.call_at(10, says("10 b"));
  loop_.clock.set(20);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"10 a", "10 b", "20"}));
}

TEST_F(EngineTest, TimersAreJudgedByTheTimeAfterThePoll) {
  loop_.call_at(100, says("timer"));
  ASSERT_EQ(engine().turn(), 0);  // Waits for exactly as long as needed.
  EXPECT_EQ(loop_.clock.now_ns(), 100);
  EXPECT_EQ(log_, (Lines{"timer"}));
}

TEST_F(EngineTest, TimerNeverRunsEarly) {
  loop_.call_at(100, says("timer"));
  backend().next_poll({.elapsed_ns = 99});  // The wait ends a moment too soon.
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_TRUE(log_.empty());
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"timer"}));
}

TEST_F(EngineTest, NativeCallbacksTakeTheirTurn) {
  struct Native final : NativeCallback {
    explicit Native(Lines& lines) : log(lines) {}
    void run() override { log.emplace_back("native"); }
    void drop() noexcept override { log.emplace_back("dropped"); }
    Lines& log;
  } native(log_);
  loop_.call_soon(says("before"));
  engine().push_ready(ReadyEntry::of_native(&native));
  loop_.call_soon(says("after"));
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"before", "native", "after"}));
  engine().push_ready(ReadyEntry::of_native(&native));
  engine().close();
  EXPECT_EQ(log_.back(), "dropped");
}

TEST_F(EngineTest, ReadingAndWritingAreTwoCallbacks) {
  std::uint64_t reader_serial = 0;
  std::uint64_t writer_serial = 0;
  watch(kWantReadable, [&] { reader_serial = engine().callback_serial(); });
  watch(kWantWritable, [&] { writer_serial = engine().callback_serial(); });
  backend().set_readable(fd_.get(), true);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_GT(reader_serial, 0U);
  EXPECT_GT(writer_serial, reader_serial);
}

// How long a turn waits.

TEST_F(EngineTest, PollIsSkippedWhileOnlyTheWakeUpIsRegistered) {
  loop_.call_soon(says("a"));
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(backend().waits(), 0U);
  watch(kWantReadable, {});
  loop_.call_soon(says("b"));
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(backend().waits(), 1U);
  EXPECT_EQ(last_wait(), "wait 0");
}

TEST_F(EngineTest, WaitsForEverWithoutTimers) {
  watch(kWantReadable, says("io"));
  backend().next_poll({});
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(last_wait(), "wait -1");
}

TEST_F(EngineTest, WaitsUntilTheNextTimer) {
  loop_.clock.set(1000);
  loop_.call_at(1500, says("timer"));
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(last_wait(), "wait 500");
}

TEST_F(EngineTest, DoesNotWaitForATimerThatIsDue) {
  loop_.clock.set(1000);
  loop_.call_at(1000, says("timer"));
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(last_wait(), "wait 0");
  EXPECT_EQ(loop_.host.blocks, 0) << "a poll that cannot block hands nothing over";
  EXPECT_EQ(log_, (Lines{"timer"}));
}

TEST_F(EngineTest, LongestWaitIsADay) {
  loop_.call_at(kNever, {});
  backend().next_poll({});
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(last_wait(), "wait " + std::to_string(24 * 3600 * kNanosecondsPerSecond));
}

TEST_F(EngineTest, ClockBelowZeroDoesNotOverflowTheWait) {
  loop_.clock.set(INT64_MIN + 1);
  loop_.call_at(kNever, {});
  backend().next_poll({});
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(last_wait(), "wait " + std::to_string(24 * 3600 * kNanosecondsPerSecond));
}

TEST_F(EngineTest, BlockingWaitIsBracketedOnce) {
  backend().next_poll({.meanwhile = [&] {
    EXPECT_EQ(loop_.host.blocks, 1);
    EXPECT_EQ(loop_.host.wakes, 0);
  }});
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(loop_.host.blocks, 1);
  EXPECT_EQ(loop_.host.wakes, 1);
}

TEST_F(EngineTest, FailedWaitIsTheResult) {
  backend().next_poll({.error = EBADF});
  EXPECT_EQ(engine().run(), EBADF);
}

// An overridden clock is the user's code, and it may cancel the timer that is being waited for.
TEST_F(EngineTest, ClockThatCancelsTheLastTimerIsSurvived) {
  struct Canceller final : Clock {
    std::int64_t now_ns() override {
      if (callback != nullptr) {
        loop->cancel(std::exchange(callback, nullptr));
      }
      return 0;
    }
    ScriptedEngine* loop = nullptr;
    Callback* callback = nullptr;
  } clock;
  clock.loop = &loop_;
  clock.callback = loop_.call_at(100, says("timer"));
  engine().set_clock(&clock);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_TRUE(log_.empty());
  engine().set_clock(&loop_.clock);
}

// Stopping.

TEST_F(EngineTest, StopLetsTheTurnFinish) {
  loop_.call_soon([&] {
    log_.emplace_back("stops");
    engine().stop();
    loop_.call_soon(says("next run"));
  });
  loop_.call_soon(says("same turn"));
  EXPECT_EQ(engine().run(), 0);
  EXPECT_EQ(log_, (Lines{"stops", "same turn"}));
  EXPECT_FALSE(engine().stopping());
  loop_.call_soon([&] { engine().stop(); });
  EXPECT_EQ(engine().run(), 0);
  EXPECT_EQ(log_.back(), "next run");
}

TEST_F(EngineTest, StopBeforeRunRunsOneTurnWithoutWaiting) {
  watch(kWantReadable, says("io"));
  engine().stop();
  EXPECT_EQ(engine().run(), 0);
  EXPECT_EQ(last_wait(), "wait 0");
}

TEST_F(EngineTest, InterruptLeavesTheRestForTheNextRun) {
  loop_.call_soon([&] {
    log_.emplace_back("raises");
    engine().interrupt();
  });
  loop_.call_soon(says("left"));
  EXPECT_EQ(engine().run(), 0);
  EXPECT_EQ(log_, (Lines{"raises"}));
  loop_.call_soon([&] { engine().stop(); });
  EXPECT_EQ(engine().run(), 0);
  EXPECT_EQ(log_, (Lines{"raises", "left"}));
}

TEST_F(EngineTest, InterruptByAReaderPutsItsWriterOff) {
  watch(kWantReadable, [&] {
    log_.emplace_back("reader raises");
    loop_.call_soon(says("scheduled"));
    engine().interrupt();
  });
  watch(kWantWritable, says("writer"));
  backend().set_readable(fd_.get(), true);
  EXPECT_EQ(engine().run(), 0);
  EXPECT_EQ(log_, (Lines{"reader raises"}));
  EXPECT_EQ(engine().run(), 0);
  const Lines next{"reader raises", "writer", "scheduled", "reader raises"};
  EXPECT_EQ(log_, next) << "what was left of the event is the first that the next run() runs";
}

TEST_F(EngineTest, InterruptedCallbackStillSendsWhatItGathered) {
  StreamOwner owner(engine(), some_fd());
  const int fd = owner.socket->fd();
  loop_.call_soon([&] {
    owner.write("a");
    owner.write("b");
    engine().interrupt();
  });
  EXPECT_EQ(engine().run(), 0);
  EXPECT_EQ(backend().sent(fd), "ab");
}

TEST_F(EngineTest, SignalDuringTheWaitIsToldAndTheTurnGoesOn) {
  backend().interrupt_next_poll();
  loop_.host.on_interrupted = [&] { loop_.call_soon(says("handler")); };
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(loop_.host.interruptions, 1);
  EXPECT_EQ(log_, (Lines{"handler"}));
}

TEST_F(EngineTest, SignalThatRaisesRunsNothing) {
  watch(kWantReadable, says("io"));
  backend().set_readable(fd_.get(), true);
  loop_.call_at(5, says("timer"));
  backend().next_poll({.error = EINTR, .elapsed_ns = 10});
  loop_.host.on_interrupted = [&] { engine().interrupt(); };
  EXPECT_EQ(engine().run(), 0);
  EXPECT_TRUE(log_.empty());
}

TEST_F(EngineTest, ExceptionThatLeavesRunLeavesNoTraces) {
  StreamOwner owner(engine(), some_fd());
  loop_.call_soon([&] {
    engine().stop();
    throw std::bad_alloc();
  });
  EXPECT_THROW((void)engine().run(), std::bad_alloc);
  EXPECT_FALSE(engine().stopping());
  EXPECT_FALSE(engine().in_callback());
}

// Timers that are cancelled.

TEST_F(EngineTest, CancelledTimersDoNotRunAndDoNotWakeTheLoop) {
  Callback* early = loop_.call_at(10, says("early"));
  loop_.call_at(50, says("late"));
  loop_.cancel(early);
  EXPECT_EQ(early->drops, 0) << "it is not the last of the heap, and stays for a while";
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(early->drops, 1);
  EXPECT_EQ(last_wait(), "wait 50");
  EXPECT_EQ(log_, (Lines{"late"}));
}

TEST_F(EngineTest, TimerCancelledByAnotherThatIsDueWithItDoesNotRun) {
  Callback* second = nullptr;
  loop_.call_at(10, [&] { loop_.cancel(second); });
  second = loop_.call_at(10, says("second"));
  loop_.clock.set(10);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_TRUE(log_.empty());
  EXPECT_EQ(engine().timers().cancelled(), 0U);
}

TEST_F(EngineTest, TimerCancelledDuringTheWaitIsDroppedWhenItIsDue) {
  Callback* timer = loop_.call_at(10, says("timer"));
  loop_.call_at(20, {});
  backend().next_poll({.meanwhile = [&] { loop_.cancel(timer); }, .elapsed_ns = 10});
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(timer->drops, 1);
  EXPECT_TRUE(log_.empty());
  EXPECT_EQ(engine().timers().cancelled(), 0U);
}

TEST_F(EngineTest, ManyCancelledTimersAreSweptOutInOneTurn) {
  std::vector<Callback*> timers;
  for (int i = 0; i < 300; ++i) {
    timers.push_back(loop_.call_at(1000 + i, says(std::to_string(i))));
  }
  for (int i = 0; i < 299; ++i) {
    loop_.cancel(timers[static_cast<std::size_t>(i)]);
  }
  loop_.call_soon({});
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(engine().timers().size(), 1U);
  EXPECT_EQ(engine().timers().cancelled(), 0U);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"299"}));
}

TEST_F(EngineTest, DroppingACancelledTimerMayScheduleAndCancelOthers) {
  // What a destructor of the user's may do.
  Callback* third = nullptr;
  loop_.host.on_drop = [&](Callback*) {
    loop_.host.on_drop = nullptr;
    loop_.call_at(5, says("from a destructor"));
    loop_.cancel(third);
  };
  Callback* first = loop_.call_at(1, says("first"));
  third = loop_.call_at(3, says("third"));
  loop_.call_at(4, says("fourth"));
  loop_.cancel(first);
  loop_.clock.set(10);
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"fourth", "from a destructor"}));
  EXPECT_EQ(engine().timers().cancelled(), 0U);
}

// The inbox.

TEST_F(EngineTest, PostsRunInOrderWithWhatTheLoopSchedules) {
  Callback* posted = loop_.host.make(says("posted"));
  loop_.call_soon(says("before"));
  ASSERT_TRUE(engine().inbox().post(ReadyEntry::of_token(posted)));
  loop_.call_soon(says("after"));
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"before", "posted", "after"}));
}

TEST_F(EngineTest, PostsRunBeforeTheEventsOfThePollTheyEnded) {
  watch(kWantReadable, says("io"));
  Callback* posted = loop_.host.make(says("posted"));
  const ChannelId id = backend().id_of(fd_.get());
  backend().next_poll({.events = {{id, kIoReadable}}, .meanwhile = [&] {
                         ASSERT_TRUE(engine().inbox().post(ReadyEntry::of_token(posted)));
                       }});
  backend().wake();
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(log_, (Lines{"posted", "io"}));
}

TEST_F(EngineTest, WakeEndsAWaitWithNothingToRun) {
  engine().inbox().wake();
  ASSERT_EQ(engine().turn(), 0);
  EXPECT_EQ(last_wait(), "wait 0");
  EXPECT_EQ(loop_.host.blocks, 0);
}

// Stale events.

TEST_F(EngineTest, EventOfAStreamThatDiedInTheTurnIsDroppedAlsoWhenItsNumberLives) {
  auto first = std::make_unique<StreamOwner>(engine(), some_fd());
  const int number = first->socket->fd();
  first->socket->start_reading();
  loop_.turn();
  const ChannelId stale = backend().id_of(number);
  std::unique_ptr<StreamOwner> second;
  loop_.call_soon([&] {
    first.reset();
    backend().reuse_number(number);
    UniqueFd reused = some_fd();
    ASSERT_EQ(reused.get(), number);
    second = std::make_unique<StreamOwner>(engine(), std::move(reused));
    second->socket->start_reading();
    backend().bring(number, "for the second");
  });
  // The poll comes before the callback; its event is dispatched behind it.
  backend().next_poll({.events = {{stale, kIoReadable | kIoWritable}}});
  loop_.turn();
  ASSERT_NE(second, nullptr);
  EXPECT_TRUE(second->log.empty());
  loop_.turn();
  EXPECT_EQ(second->received, "for the second");
}

TEST_F(EngineTest, EventLeftByAnInterruptedTurnIsHarmlessLater) {
  StreamOwner owner(engine(), some_fd());
  const int fd = owner.socket->fd();
  owner.socket->start_reading();
  loop_.turn();
  backend().bring(fd, "data");
  loop_.call_soon([&] { engine().interrupt(); });
  EXPECT_EQ(engine().run(), 0);
  EXPECT_EQ(engine().ready().size(), 1U);
  loop_.call_soon([&] { engine().stop(); });
  EXPECT_EQ(engine().run(), 0);
  EXPECT_EQ(owner.received, "data");
}

TEST_F(EngineTest, DeliveriesAreBracketedWhileCallbacksAreTimed) {
  watch(kWantReadable, says("io"));
  backend().set_readable(fd_.get(), true);
  engine().time_callbacks(true);
  loop_.turn();
  EXPECT_EQ(loop_.host.io_begun, 1);
  EXPECT_EQ(loop_.host.io_over, 1);
  engine().time_callbacks(false);
  loop_.turn();
  EXPECT_EQ(loop_.host.io_begun, 1);
}

// Closing.

TEST_F(EngineTest, CloseDropsEverythingOnceAndRefusesPosts) {
  Callback* ready = loop_.call_soon(says("ready"));
  Callback* timer = loop_.call_at(5, says("timer"));
  Callback* reader = watch(kWantReadable, says("io"));
  Callback* posted = loop_.host.make(says("posted"));
  ASSERT_TRUE(engine().inbox().post(ReadyEntry::of_token(posted)));
  loop_.host.on_drop = [&](Callback*) {
    EXPECT_TRUE(engine().closed());
    EXPECT_TRUE(engine().ready().empty());
    EXPECT_TRUE(engine().timers().empty());
    EXPECT_EQ(engine().watchers().count(), 0U);
  };
  engine().close();
  engine().close();
  for (const Callback* callback : {ready, timer, reader, posted}) {
    EXPECT_EQ(callback->drops, 1);
    EXPECT_EQ(callback->runs, 0);
  }
  EXPECT_FALSE(engine().inbox().post(ReadyEntry::of_token(ready)));
  EXPECT_TRUE(log_.empty());
}

TEST_F(EngineTest, StreamsMayOutliveCloseAndAreDestroyedAfterIt) {
  StreamOwner owner(engine(), some_fd());
  owner.socket->start_reading();
  loop_.turn();
  engine().close();
}

// On the kernel and the real clock.

class RealEngineTest : public ::testing::Test {
 protected:
  void TearDown() override { engine_.close(); }
  Callback* call_soon(std::function<void()> function) {
    Callback* callback = host_.make(std::move(function));
    engine_.push_ready(ReadyEntry::of_token(callback));
    return callback;
  }
  void call_later(std::int64_t delay_ns, std::function<void()> function) {
    engine_.timers().push(engine_.now_ns() + delay_ns, host_.make(std::move(function)));
  }

  TestHost host_;
  Engine engine_{host_};
};

TEST_F(RealEngineTest, SleepsUntilATimerAndNeverWakesItEarly) {
  const std::int64_t start = monotonic_now_ns();
  call_later(3'000'000, [&] { engine_.stop(); });
  EXPECT_EQ(engine_.run(), 0);
  EXPECT_GE(monotonic_now_ns() - start, 3'000'000);
}

TEST_F(RealEngineTest, PostsFromManyThreadsWakeItAndAllRun) {
  constexpr int kThreads = 4;
  constexpr int kPosts = 500;
  std::atomic<int> ran{0};
  std::vector<Callback*> callbacks;
  for (int i = 0; i < kThreads * kPosts; ++i) {
    callbacks.push_back(host_.make([&] {
      if (++ran == kThreads * kPosts) {
        engine_.stop();
      }
    }));
  }
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < kPosts; ++i) {
        Callback* callback = callbacks[static_cast<std::size_t>(thread * kPosts + i)];
        EXPECT_TRUE(engine_.inbox().post(ReadyEntry::of_token(callback)));
        if (i % 100 == 0) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      }
    });
  }
  EXPECT_EQ(engine_.run(), 0);
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(ran.load(), kThreads * kPosts);
}

// Connections come and go on the same few numbers while bytes of the dead are on their way. Each
// connection may only ever see its own tag.
TEST_F(RealEngineTest, BytesOfOneConnectionNeverReachAnotherWhileNumbersAreReused) {
  struct Connection {
    testing::SocketPair pair = testing::socket_pair();
    std::unique_ptr<StreamOwner> owner;
    char tag = 0;
  };
  std::vector<Connection> connections(8);
  std::uint32_t opened = 0;
  std::uint32_t random = 1;
  const auto open = [&](Connection& connection) {
    connection.owner.reset();
    connection.pair = testing::socket_pair();
    connection.tag = static_cast<char>('a' + opened++ % 26);
    connection.owner = std::make_unique<StreamOwner>(engine_, std::move(connection.pair.near_end));
    connection.owner->socket->start_reading();
  };
  for (Connection& connection : connections) {
    open(connection);
  }
  std::size_t bytes = 0;
  for (int round = 0; round < 2000; ++round) {
    for (Connection& connection : connections) {
      const std::string text(5, connection.tag);
      (void)os::send(connection.pair.far_end.get(), text.data(), text.size());
    }
    random = random * 1'664'525 + 1'013'904'223;
    const std::size_t victim = (random >> 16) % connections.size();
    // Behind the poll and before its events: the victim dies and its number lives on.
    call_soon([&] { open(connections[victim]); });
    ASSERT_EQ(engine_.turn(), 0);
    for (Connection& connection : connections) {
      bytes += connection.owner->received.size();
      ASSERT_EQ(connection.owner->received.find_first_not_of(connection.tag), std::string::npos)
          << "round " << round << ": " << connection.owner->received << " for " << connection.tag;
      connection.owner->received.clear();
    }
  }
  EXPECT_GT(bytes, 10'000U);
  connections.clear();
}

TEST_F(RealEngineTest, ForkedChildClosesItsCopyAndTheParentGoesOn) {
  const testing::SocketPair pair = testing::socket_pair();
  Callback* reader = host_.make([&] { engine_.stop(); });
  ASSERT_EQ(engine_.watchers().add(pair.near_end.get(), kWantReadable, reader).error, 0);
  const pid_t child = ::fork();
  if (child == 0) {
    engine_.abandon_after_fork();
    engine_.close();
    ::_exit(engine_.watchers().count() == 0 ? 0 : 1);
  }
  ASSERT_GT(child, 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  // Had the child edited the set, this would wait for ever.
  ASSERT_TRUE(os::send(pair.far_end.get(), "x", 1).ok());
  EXPECT_EQ(engine_.run(), 0);
  EXPECT_EQ(reader->notices, 1);
}

}  // namespace
}  // namespace cpploop
