// The kinds of golden file, one check each.
#pragma once

#include "tests/golden/namm/golden_file.h"

namespace mneme::testing {

void CheckBam(const GoldenFile& golden);
void CheckSpectrogram(const GoldenFile& golden);
void CheckStatistics(const GoldenFile& golden);
void CheckRecency(const GoldenFile& golden);
void CheckSelection(const GoldenFile& golden);
void CheckPolicy(const GoldenFile& golden);
void CheckCheckpoint(const GoldenFile& golden);
void CheckBaselines(const GoldenFile& golden);
void CheckEndToEnd(const GoldenFile& golden);
void CheckEvolutionConstants(const GoldenFile& golden);
void CheckEvolutionRun(const GoldenFile& golden);
void CheckOpenNamm(const GoldenFile& golden);
void CheckOpenNammTransformer(const GoldenFile& golden);

}  // namespace mneme::testing
