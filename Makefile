# Two commands for everybody:   make chat   make test
# Each does all set-up on a fresh machine and does no work twice. See README.md.
SHELL := /bin/bash
PRESET ?= release
BUILD := build/$(PRESET)
JOBS ?= $(shell nproc)
export MNEME_CACHE ?= $(HOME)/.cache/mneme
export MNEME_GOLDEN ?= $(abspath $(CURDIR)/../shared/golden)

.DEFAULT_GOAL := help
.PHONY: help setup configure build chat test soak lint bench asan tsan clean

help: ## Shows this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: ## Installs and downloads what building and running need
	@deploy/setup.sh

configure: setup
	@[ -e $(BUILD)/build.ninja ] || cmake --preset $(PRESET)

build: configure ## Builds everything into build/release (PRESET=dev|asan|tsan|cuda for others)
	@cmake --build $(BUILD) --parallel $(JOBS)

# Not the tests, which take longer to build than all else.
chat: configure ## Starts Mneme and chats with the default model in this terminal
	@cmake --build $(BUILD) --parallel $(JOBS) --target programs
	@$(BUILD)/bin/mneme chat --up

test: build ## Builds and runs all tests
	@deploy/setup.sh --test
	@ctest --preset $(PRESET) --parallel 2 --progress

soak: build ## Runs conversations under random kills, twenty seeds (`make test` runs three), and Redis still for a minute
	@deploy/setup.sh --test
	@MNEME_SOAK_SEEDS=20 MNEME_BIN=$(abspath $(BUILD))/bin $(BUILD)/bin/soak_test
	@MNEME_STOP_SECONDS=60 MNEME_BIN=$(abspath $(BUILD))/bin $(BUILD)/bin/store_fault_test --gtest_filter='*StandsStill*'

lint: build ## Checks formats and lint rules (clang-format, clang-tidy on changed files, buf, cargo)
	@deploy/setup.sh --lint
	@deploy/lint.sh $(BUILD)

bench: build ## Prints our speed beside llama.cpp's and transformers', and all micro-benchmarks
	@cmake --build $(BUILD) --parallel $(JOBS) --target benches
	@deploy/bench.sh $(BUILD)

asan: ## Runs unit and service tests under AddressSanitizer and UBSan
	@$(MAKE) --no-print-directory build PRESET=asan
	@deploy/setup.sh --test
	@deploy/sanitize.sh asan

tsan: ## Runs unit and service tests under ThreadSanitizer
	@$(MAKE) --no-print-directory build PRESET=tsan
	@deploy/setup.sh --test
	@deploy/sanitize.sh tsan

clean: ## Removes all build folders (downloads in MNEME_CACHE stay)
	@rm -rf build
