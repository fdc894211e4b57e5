package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -go-package bpf -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror" Bench bench.c -- -idirafter /usr/include/x86_64-linux-gnu
