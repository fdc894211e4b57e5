package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

// halvesMain makes connections whose sides end them one by one:
//
//	halves serve PORT                     do with each connection what its first line says
//	halves open ADDR:PORT FROM HERE THERE connect from a port; first the server does THERE, then the client HERE:
//	                                      hold, fin or reset; then wait for the interrupt
func halvesMain() {
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		serveHalves(os.Args[2])
	}
	if len(os.Args) != 6 || os.Args[1] != "open" {
		die("usage: halves serve PORT, or: halves open ADDR:PORT FROM HERE THERE")
	}
	stop := interrupted()
	port, err := strconv.Atoi(os.Args[3])
	if err != nil {
		die("halves: %v", err)
	}
	dialer := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: port}}
	conn, err := dialer.Dial("tcp", os.Args[2])
	if err != nil {
		die("halves: %v", err)
	}
	there := os.Args[5]
	fmt.Fprintln(conn, there)
	answer := bufio.NewReader(conn)
	if _, err := answer.ReadString('\n'); err != nil && there != "reset" {
		die("halves: %v", err)
	}
	if there != "hold" {
		_, _ = answer.ReadByte() // what ends it has come
	}
	end(conn.(*net.TCPConn), os.Args[4])
	<-stop
}

// end ends one side of a connection.
func end(conn *net.TCPConn, how string) {
	switch how {
	case "fin":
		_ = conn.CloseWrite()
	case "reset":
		_ = conn.SetLinger(0)
		conn.Close()
	}
}

func serveHalves(port string) {
	listener, err := net.Listen("tcp", ":"+port)
	for err == nil {
		var conn net.Conn
		if conn, err = listener.Accept(); err == nil {
			go serveHalf(conn.(*net.TCPConn))
		}
	}
	die("halves: %v", err)
}

func serveHalf(conn *net.TCPConn) {
	defer conn.Close()
	words := bufio.NewReader(conn)
	how, err := words.ReadString('\n')
	if err != nil {
		return
	}
	fmt.Fprintln(conn, "ok")
	end(conn, strings.TrimSpace(how))
	_, _ = io.Copy(io.Discard, words)
	if strings.TrimSpace(how) == "hold" {
		select {} // it answers no FIN with its own
	}
}
