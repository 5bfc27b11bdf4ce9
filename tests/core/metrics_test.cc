#include "core/metrics.h"

#include <gtest/gtest.h>

namespace cpploop {
namespace {

constexpr std::int64_t kMicrosecond = 1000;

TEST(Metrics, MeasuresNothingBeforeItIsAskedTo) {
  Metrics metrics;
  EXPECT_FALSE(metrics.measuring());
  metrics.measure_from(7);
  EXPECT_TRUE(metrics.measuring());
}

TEST(Metrics, BeginsToMeasureOnlyOnce) {
  Metrics metrics;
  metrics.measure_from(1000);
  metrics.measure_from(5000);
  metrics.look(6000);
  EXPECT_EQ(metrics.busy_ns.get(), 5000U);
}

TEST(Metrics, SplitsTimeIntoBusyAndWaiting) {
  Metrics metrics;
  metrics.measure_from(100);
  metrics.look(400);
  metrics.waited(1000);
  metrics.look(1010);
  EXPECT_EQ(metrics.busy_ns.get(), 310U);
  EXPECT_EQ(metrics.waited_ns.get(), 600U);
}

TEST(Metrics, TimeBetweenRunsIsNobodys) {
  Metrics metrics;
  metrics.measure_from(0);
  metrics.look(10);
  metrics.begin(1000);
  metrics.look(1005);
  EXPECT_EQ(metrics.busy_ns.get(), 15U);
}

TEST(Metrics, BusyPeriodsGoByPowersOfTwoMicroseconds) {
  Metrics metrics;
  std::int64_t now = 0;
  metrics.measure_from(now);
  for (const std::int64_t period : {std::int64_t{0}, kMicrosecond - 1, kMicrosecond,
                                    2 * kMicrosecond, 3 * kMicrosecond, 4 * kMicrosecond}) {
    metrics.look(now += period);
  }
  EXPECT_EQ(metrics.busy_periods[0].get(), 2U);
  EXPECT_EQ(metrics.busy_periods[1].get(), 1U);
  EXPECT_EQ(metrics.busy_periods[2].get(), 2U);
  EXPECT_EQ(metrics.busy_periods[3].get(), 1U);
}

TEST(Metrics, TheLastBucketHoldsEverythingLonger) {
  Metrics metrics;
  metrics.measure_from(0);
  metrics.look(INT64_MAX / 2);
  EXPECT_EQ(metrics.busy_periods[Metrics::kBusyBuckets - 1].get(), 1U);
}

// A clock that goes back is the kernel's fault and costs nothing but the measurement.
TEST(Metrics, ATimeThatGoesBackCountsAsNone) {
  Metrics metrics;
  metrics.measure_from(1000);
  metrics.look(500);
  EXPECT_EQ(metrics.busy_ns.get(), 0U);
  metrics.look(600);
  EXPECT_EQ(metrics.busy_ns.get(), 100U);
}

}  // namespace
}  // namespace cpploop
