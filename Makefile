# Mosaic. `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.1.0)
LDFLAGS := -s -w -X main.version=$(VERSION)
# Static binaries: the same files run on any distribution, in any container.
GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
TOOLS := $(CURDIR)/.tools/bin
RUNC_VERSION := v1.5.2
CNI_VERSION := v1.9.1

# Packages whose tests run under the race detector: those with goroutines of their own.
RACE_PKGS := ./core/agent/... ./core/api/... ./core/containerizer ./core/master/... ./core/modulehost/... ./sdk/module/... ./sdk/scheduler/...

.PHONY: build test lint gen demo bench check-long help clean install-tools

build: bin/runc bin/cni/bridge ## build bin/mosaic, bin/mosaic-modules, bin/mosaic-shim, bin/mosaic-init, bin/runc and bin/cni
	@mkdir -p bin
	$(GOBUILD) -o bin/ ./core/cmd/mosaic ./modules/bundle/mosaic-modules ./core/containerizer/shim/mosaic-shim \
		./core/containerizer/shim/mosaic-init \
		./modules/containerloggers/syslog/mosaic-syslog-forwarder
	@# The library that finds GPUs is C: where there is no compiler, there is no isolator for them.
	@if command -v $${CC:-cc} >/dev/null; then \
	  CGO_ENABLED=1 CGO_CFLAGS=-Wno-deprecated-declarations $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./isolators/nvidiagpu/mosaic-isolator-nvidia-gpu; \
	else echo "note: no C compiler: mosaic-isolator-nvidia-gpu is not built" >&2; fi

bin/runc:
	tools/install.sh runc $(RUNC_VERSION)

bin/cni/bridge:
	tools/install.sh cni $(CNI_VERSION)

test: build ## everything that a change must pass
	tools/install.sh test
	tools/test.sh $(RACE_PKGS)

lint: ## formatting, static checks, import rules, generated code up to date
	tools/install.sh lint
	tools/lint.sh

gen: ## generate code from the contracts
	tools/install.sh gen
	sdk/proto/generate.sh

demo: build ## a one-machine cluster that runs real tasks and cleans up
	tools/demo.sh

bench: build ## measure the machine's floor, then the rows of docs/performance.md
	tools/install.sh bench
	$(GO) run ./core/e2e/bench

check-long: build ## slow checks: cgroup v2 in a virtual machine, fuzzing, long random histories
	tools/install.sh long
	tools/check-long.sh

clean: ## remove what was built
	rm -rf bin

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'
