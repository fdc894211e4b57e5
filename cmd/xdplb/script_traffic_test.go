package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// interrupted is closed when the script says: kill -INT.
func interrupted() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	return c
}

// udpMain serves or asks:
//
//	udp serve ADDR:PORT NAME                answer every datagram with the name and its own words
//	udp ask [-n N] [-size BYTES] [-tries N] [-new] [-log FILE] ADDR:PORT
//
// ask awaits each answer before it sends the next datagram (numbered, so that no answer is taken for
// another's), and prints who answered how often. With -n 0 it goes on until it is interrupted; -new takes a new
// port for each; what is not answered in two seconds is lost, and a failure after so many tries.
func udpMain() {
	flags := flag.NewFlagSet("udp", flag.ExitOnError)
	n := flags.Int("n", 1, "")
	size := flags.Int("size", 100, "")
	tries := flags.Int("tries", 1, "")
	fresh := flags.Bool("new", false, "")
	log := flags.String("log", "", "")
	if len(os.Args) == 4 && os.Args[1] == "serve" {
		serveUDP(os.Args[2], os.Args[3])
	}
	if len(os.Args) < 3 || os.Args[1] != "ask" || flags.Parse(os.Args[2:]) != nil || flags.NArg() != 1 {
		die("usage: udp serve ADDR:PORT NAME, or: udp ask [flags] ADDR:PORT")
	}
	journal := openJournal(*log)
	stop := interrupted()
	answers := map[string]int{}
	var conn net.Conn
	for i := 0; *n == 0 || i < *n; i++ {
		select {
		case <-stop:
			*n = -1
			continue
		default:
		}
		if conn == nil || *fresh {
			var err error
			if conn, err = net.Dial("udp", flags.Arg(0)); err != nil {
				die("udp: %v", err)
			}
		}
		name := askUDP(conn, i, *size, *tries)
		answers[name]++
		fmt.Fprintln(journal, name)
		if *fresh {
			conn.Close()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(answers)) {
		fmt.Println(name, answers[name])
	}
}

func serveUDP(addr, name string) {
	conn, err := net.ListenPacket("udp", addr)
	buffer := make([]byte, 1<<16)
	copy(buffer, name+" ")
	prefix := len(name) + 1
	for err == nil {
		var size int
		var from net.Addr
		if size, from, err = conn.ReadFrom(buffer[prefix:]); err == nil {
			_, _ = conn.WriteTo(buffer[:prefix+size], from) // a client that is gone, or a path that became narrower
		}
	}
	die("udp serve: %v", err)
}

// askUDP sends datagram number i and returns who answered.
func askUDP(conn net.Conn, i, size, tries int) string {
	words := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
	copy(words, fmt.Sprintf("%010d ", i))
	buffer := make([]byte, 1<<16)
	var err error
	for range tries {
		if _, err = conn.Write(words); err != nil {
			continue // an ICMP error about an earlier one
		}
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			var got int
			if got, err = conn.Read(buffer); err != nil {
				break
			}
			if name, echo, _ := bytes.Cut(buffer[:got], []byte(" ")); bytes.Equal(echo, words) {
				return string(name)
			}
		}
	}
	die("udp ask: datagram %d of %d bytes: %v", i, size, err)
	return ""
}

// openJournal opens a file that a script can empty and watch.
func openJournal(path string) io.Writer {
	if path == "" {
		return io.Discard
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		die("%v", err)
	}
	return f
}

// holdMain asks a web server's name again and again on one connection and appends the answers to a file, until it
// is interrupted; then it prints the names without repetition: hold ADDR:PORT FILE
func holdMain() {
	if len(os.Args) != 3 {
		die("usage: hold ADDR:PORT FILE")
	}
	journal, stop := openJournal(os.Args[2]), interrupted()
	conn, err := net.DialTimeout("tcp", os.Args[1], patience)
	if err != nil {
		die("hold: %v", err)
	}
	answers := bufio.NewReader(conn)
	names := map[string]bool{}
	for tick := time.Tick(10 * time.Millisecond); ; {
		_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: vip\r\n\r\n"); err != nil {
			die("hold: %v", err)
		}
		response, err := http.ReadResponse(answers, nil)
		if err != nil {
			die("hold: %v", err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			die("hold: %v", err)
		}
		names[strings.TrimSpace(string(body))] = true
		_, _ = journal.Write(body)
		select {
		case <-stop:
			conn.Close()
			fmt.Println(strings.Join(slices.Sorted(maps.Keys(names)), " "))
			return
		case <-tick:
		}
	}
}

// bulkMain has much to send:
//
//	bulk serve PORT   GET /MIB answers that many MiB, PUT / the digest of what came
//	bulk make MIB     print those bytes
//	bulk digest MIB   print their digest
func bulkMain() {
	if len(os.Args) != 3 {
		die("usage: bulk serve|make|digest NUMBER")
	}
	number, err := strconv.Atoi(os.Args[2])
	switch os.Args[1] {
	case "make":
		_, err = io.CopyBuffer(os.Stdout, lab.Download(number), make([]byte, 1<<18))
	case "digest":
		fmt.Printf("%x\n", lab.Digest(number))
	case "serve":
		err = http.ListenAndServe(":"+strconv.Itoa(number), http.HandlerFunc(serveBulk))
	}
	if err != nil {
		die("bulk: %v", err)
	}
}

func serveBulk(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		if sum, err := lab.DigestOf(r.Body); err == nil {
			fmt.Fprintf(w, "%x\n", sum)
		}
		return
	}
	size, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil {
		http.Error(w, "the size is a number of MiB", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(size*lab.MiB))
	_, _ = io.CopyBuffer(w, lab.Download(size), make([]byte, 1<<18))
}

// ttlMain prints the ICMP error that a packet meets:
//
//	ttl TTL tcp|udp ADDR:PORT      the first packet of a client, with a small TTL
//	ttl answer TTL ADDR:PORT       what a UDP server answers
func ttlMain() {
	if len(os.Args) != 4 {
		die("usage: ttl TTL tcp|udp ADDR:PORT, or: ttl answer TTL ADDR:PORT")
	}
	words := os.Args[1:]
	if words[0] == "answer" {
		words[0], words[1] = words[1], words[0]
	}
	ttl, err := strconv.Atoi(words[0])
	if err != nil {
		die("ttl: %v", err)
	}
	var socket int
	control := func(network, _ string, c syscall.RawConn) error {
		return errors.Join(c.Control(func(fd uintptr) {
			socket, err = unix.Dup(int(fd)) // outlives a connection that failed
			if strings.HasSuffix(network, "4") {
				err = errors.Join(err, unix.SetsockoptInt(socket, unix.IPPROTO_IP, unix.IP_TTL, ttl),
					unix.SetsockoptInt(socket, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
			} else {
				err = errors.Join(err, unix.SetsockoptInt(socket, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl),
					unix.SetsockoptInt(socket, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
			}
		}), err)
	}
	if words[1] == "answer" {
		err = answerOnce(words[2], control)
	} else {
		err = askOnce(words[1], words[2], control)
	}
	if err == nil {
		die("ttl: no error came")
	}
	printICMP(socket, err)
}

func askOnce(network, addr string, control func(string, string, syscall.RawConn) error) error {
	dialer := net.Dialer{Timeout: patience, Control: control}
	conn, err := dialer.Dial(network, addr)
	if err == nil && network == "udp" {
		_, _ = conn.Write([]byte("hello"))
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 100))
	}
	return err
}

// answerOnce answers a datagram, once more each second, and returns the error that a read meets then: the first answer
// may have found its client there still.
func answerOnce(addr string, control func(string, string, syscall.RawConn) error) error {
	config := net.ListenConfig{Control: control}
	conn, err := config.ListenPacket(context.Background(), "udp", addr)
	if err != nil {
		die("ttl: %v", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	buffer := make([]byte, 100)
	size, from, err := conn.ReadFrom(buffer)
	if err != nil {
		die("ttl: nobody asked: %v", err)
	}
	for end := time.Now().Add(patience); ; {
		if _, err := conn.WriteTo(buffer[:size], from); err != nil {
			die("ttl: %v", err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		_, _, err = conn.ReadFrom(buffer)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return err
		}
	}
}

// printICMP prints the struct sock_extended_err and the address behind it (linux/errqueue.h).
func printICMP(socket int, why error) {
	control := make([]byte, 512)
	_, size, _, _, err := unix.Recvmsg(socket, make([]byte, 512), control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		die("ttl: %v, but no ICMP message: %v", why, err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:size])
	if err != nil {
		die("ttl: %v", err)
	}
	for _, m := range messages {
		if len(m.Data) < 16+16 {
			continue
		}
		kind, code := m.Data[5], m.Data[6]
		switch from := m.Data[16:]; {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR:
			fmt.Printf("type %d code %d from %s\n", kind, code, net.IP(from[4:8]))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR:
			fmt.Printf("type %d code %d from %s\n", kind, code, net.IP(from[8:24]))
		}
	}
}
