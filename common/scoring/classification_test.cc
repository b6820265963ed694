#include "common/scoring/classification.h"

#include <gtest/gtest.h>

namespace mneme::scoring {
namespace {

TEST(ClassificationTest, TheTruthIsSharedWithOtherNamedClasses) {
  EXPECT_EQ(ClassificationScore("Type: Entity", "Entity", {"Entity", "Reason"}), 1);
  EXPECT_EQ(ClassificationScore("Entity Reason", "Reason", {"Entity", "Reason"}), 0.5);
  EXPECT_EQ(ClassificationScore("none", "Reason", {"Entity", "Reason"}), 0);
  EXPECT_EQ(ClassificationScore("", "Reason", {"Entity", "Reason"}), 0);
  EXPECT_EQ(ClassificationScore("Entity", "Entity", {}), 0);
}

TEST(ClassificationTest, PartsOfTheTruthDontCount) {
  EXPECT_EQ(ClassificationScore("City name here", "City name", {"City", "City name"}), 1);
  // But what the truth is part of does.
  EXPECT_EQ(ClassificationScore("City name here", "City", {"City", "City name"}), 0.5);
}

TEST(ClassificationTest, AfterADropTheNextClassIsNotChecked) {
  EXPECT_EQ(ClassificationScore("abcd", "abcd", {"ab", "bc", "abcd"}), 0.5);
  EXPECT_EQ(ClassificationScore("abcd", "abcd", {"ab", "bc", "cd", "abcd"}), 0.5);
  EXPECT_EQ(ClassificationScore("abcd", "abcd", {"abcd", "ab"}), 1);
}

TEST(ClassificationTest, IsCaseSensitive) {
  EXPECT_EQ(ClassificationScore("entity", "Entity", {"Entity"}), 0);
}

}  // namespace
}  // namespace mneme::scoring
