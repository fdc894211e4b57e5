package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"
)

const (
	secretSize    = 16
	secretDialers = 16 // connect at once: the ring of a veth device has 256 places
)

// secretsMain has connections that carry secrets. It says `done` when it is ready, does what it reads, line by line,
// and ends with its input.
//
//	secrets keep PORT                     a server. It answers each message with the first one of its connection, and
//	                                      itself; `peers` has it count its open connections by address
//	secrets ask ADDR:PORT NUMBER SOURCE...   a client with so many connections. `first` sends the secrets, `again`
//	                                      something else; both compare what comes back
func secretsMain() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "keep":
		keepSecrets(os.Args[2])
	case len(os.Args) > 4 && os.Args[1] == "ask":
		number, err := strconv.Atoi(os.Args[3])
		if err != nil {
			die("secrets: %v", err)
		}
		askSecrets(os.Args[2], number, os.Args[4:])
	default:
		die("usage: secrets keep PORT, or: secrets ask ADDR:PORT NUMBER SOURCE...")
	}
}

func keepSecrets(port string) {
	ln, err := net.Listen("tcp", ":"+port)
	if err != nil {
		die("secrets: %v", err)
	}
	var mu sync.Mutex
	peers := map[netip.AddrPort]int{}
	count := func(conn net.Conn, by int) {
		mu.Lock()
		defer mu.Unlock()
		peers[netip.MustParseAddrPort(conn.RemoteAddr().String())] += by
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				die("secrets: %v", err)
			}
			count(conn, 1)
			go func() {
				keepSecret(conn)
				count(conn, -1)
			}()
		}
	}()
	fmt.Println("done")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		open := map[netip.Addr]int{}
		mu.Lock()
		for peer, n := range peers {
			open[peer.Addr()] += n
		}
		mu.Unlock()
		_ = json.NewEncoder(os.Stdout).Encode(open)
	}
}

func keepSecret(conn net.Conn) {
	defer conn.Close()
	answer := make([]byte, 2*secretSize) // the first message, and the last
	for first := true; ; first = false {
		if _, err := io.ReadFull(conn, answer[secretSize:]); err != nil {
			return
		}
		if first {
			copy(answer, answer[secretSize:])
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// secretConn is a connection with its secret.
type secretConn struct {
	net.Conn
	secret [secretSize]byte
}

func askSecrets(addr string, number int, sources []string) {
	conns := make([]*secretConn, number)
	eachSecret(number, func(i int) error {
		from := net.TCPAddr{IP: net.ParseIP(sources[i%len(sources)])}
		dialer := net.Dialer{Timeout: patience, LocalAddr: &from, KeepAlive: -1}
		conn, err := dialer.Dial("tcp", addr)
		conns[i] = &secretConn{Conn: conn}
		return err
	})
	fmt.Println("done")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		first := lines.Text() == "first"
		eachSecret(number, func(i int) error { return conns[i].ask(first) })
		fmt.Println("done")
	}
}

// eachSecret calls f for every connection, several at a time.
func eachSecret(number int, f func(i int) error) {
	var wait sync.WaitGroup
	for d := range secretDialers {
		wait.Go(func() {
			for i := d; i < number; i += secretDialers {
				if err := f(i); err != nil {
					die("secrets: connection %d: %v", i, err)
				}
			}
		})
	}
	wait.Wait()
}

// ask sends the secret, or something else later, and compares what comes back.
func (c *secretConn) ask(first bool) error {
	message := make([]byte, secretSize)
	_, _ = rand.Read(message)
	if first {
		c.secret = [secretSize]byte(message)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(message); err != nil {
		return err
	}
	answer := make([]byte, 2*secretSize)
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("%s: %w", c.LocalAddr(), err)
	}
	if !bytes.Equal(answer[:secretSize], c.secret[:]) || !bytes.Equal(answer[secretSize:], message) {
		return fmt.Errorf("%s: an answer for another connection", c.LocalAddr())
	}
	return nil
}
