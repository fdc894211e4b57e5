# `make demo` shows the balancer at work, `make test` installs what tests need and runs them all. Both want
# Go and root. Objects that clang makes are committed: building and running needs Go alone.
GO ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
# what tests use besides Go, on Debian; and what regenerating and checking uses
TEST_TOOLS = nginx:nginx-light curl:curl ping:iputils-ping ip:iproute2 ethtool:ethtool tcpdump:tcpdump sysctl:procps systemd-analyze:systemd groff:groff-base ipvsadm:ipvsadm qemu-system-x86_64:qemu-system-x86 route:net-tools
GENERATE_TOOLS = clang-19:clang-19 llvm-strip-19:llvm-19 /usr/include/bpf/bpf_helpers.h:libbpf-dev

# what the bench compares with
BENCH_TOOLS = nft:nftables haproxy:haproxy nginx:nginx-light /usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream

# where make install puts things; DESTDIR goes in front of all, and the unit names them without it
PREFIX = /usr/local
SBINDIR = $(PREFIX)/sbin
UNITDIR = $(PREFIX)/lib/systemd/system
COMPLETIONDIR = $(PREFIX)/share/bash-completion/completions
MANDIR = $(PREFIX)/share/man
SYSCONFDIR = /etc

.PHONY: build install uninstall demo test bench check generate tools bench-tools generate-tools clean

build:
	$(GO) build -o xdplb ./cmd/xdplb

# builds where Go is; under sudo, which may not find it, what make build has built
install: $(if $(shell command -v $(GO) 2>/dev/null),build)
	@[ -x xdplb ] || { echo "install: xdplb is not built, and there is no $(GO) to build it; run make build first"; exit 1; }
	[ -d $(DESTDIR)$(SYSCONFDIR)/xdplb ] || install -d -m 700 $(DESTDIR)$(SYSCONFDIR)/xdplb
	install -D -m 755 xdplb $(DESTDIR)$(SBINDIR)/xdplb
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(COMPLETIONDIR) $(DESTDIR)$(MANDIR)/man8
	sed 's|@sbindir@|$(SBINDIR)|; s|@sysconfdir@|$(SYSCONFDIR)|' cmd/xdplb/install/xdplb.service >$(DESTDIR)$(UNITDIR)/xdplb.service
	./xdplb completion bash >$(DESTDIR)$(COMPLETIONDIR)/xdplb
	./xdplb man >$(DESTDIR)$(MANDIR)/man8/xdplb.8
	chmod 644 $(DESTDIR)$(UNITDIR)/xdplb.service $(DESTDIR)$(COMPLETIONDIR)/xdplb $(DESTDIR)$(MANDIR)/man8/xdplb.8
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload

# the kernel goes on forwarding (xdplb detach --all ends that), and the files in /etc/xdplb stay
uninstall:
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl disable --now xdplb.service || true
	rm -f $(DESTDIR)$(SBINDIR)/xdplb $(DESTDIR)$(UNITDIR)/xdplb.service
	rm -f $(DESTDIR)$(COMPLETIONDIR)/xdplb $(DESTDIR)$(MANDIR)/man8/xdplb.8
	@rmdir $(DESTDIR)$(SYSCONFDIR)/xdplb 2>/dev/null || true
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload

demo: build
	./xdplb demo

# one package at a time: some tests allow an open connection no pause of 3 s
test: tools
	$(GO) test -count=1 -p 1 -timeout 45m ./...

# nanoseconds over the floor, frames a second on a wire, and what changes take; benchstat reads it
bench: bench-tools
	$(GO) run ./cmd/xdplb/internal/bench

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

bench-tools:
	$(call install,$(BENCH_TOOLS))

generate-tools:
	$(call install,$(GENERATE_TOOLS))

clean:
	rm -f xdplb
