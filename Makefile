# `make demo` shows the balancer at work, `make test` installs what tests need and runs them all. Both want
# Go and root. Objects that clang makes are committed: building and running needs Go alone.
GO ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
# what tests use besides Go, on Debian; and what regenerating and checking uses
TEST_TOOLS = nginx:nginx-light curl:curl ping:iputils-ping ip:iproute2 ethtool:ethtool tcpdump:tcpdump
GENERATE_TOOLS = clang-19:clang-19 llvm-strip-19:llvm-19 /usr/include/bpf/bpf_helpers.h:libbpf-dev

.PHONY: build demo test check generate tools generate-tools clean

build:
	$(GO) build -o xdplb ./cmd/xdplb

demo: build
	./xdplb demo

# one package at a time: some tests allow an open connection no pause of 3 s
test: tools
	$(GO) test -count=1 -p 1 -timeout 45m ./...

# generated code is what clang makes, and the static checks have nothing to say
check: generate-tools
	@test -z "$$(gofmt -l .)" || { echo "gofmt: $$(gofmt -l .)"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) generate ./...
	git diff --exit-code -- bpf

generate: generate-tools
	$(GO) generate ./...

# installs those of TOOL:PACKAGE that are missing
define install
	@missing=; for t in $(1); do [ -e "$${t%%:*}" ] || command -v "$${t%%:*}" >/dev/null || missing="$$missing $${t##*:}"; done; \
	if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; fi
endef

tools:
	$(call install,$(TEST_TOOLS))

generate-tools:
	$(call install,$(GENERATE_TOOLS))

clean:
	rm -f xdplb
