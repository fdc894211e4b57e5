package lab

import (
	"context"
	"net"
)

// Listen opens a listening TCP socket in the node. The lab closes it, and what it accepted, if nobody did.
func (n *Node) Listen(network, address string) (ln net.Listener, err error) {
	err = n.wrap(n.Do(func() error {
		ln, err = net.Listen(network, address)
		return err
	}))
	if err != nil {
		return nil, err
	}
	n.lab.track(ln)
	return &listener{ln, n.lab}, nil
}

// ListenPacket opens a UDP socket in the node. The lab closes it if nobody did.
func (n *Node) ListenPacket(network, address string) (conn net.PacketConn, err error) {
	err = n.wrap(n.Do(func() error {
		conn, err = net.ListenPacket(network, address)
		return err
	}))
	if err != nil {
		return nil, err
	}
	n.lab.track(conn)
	return conn, nil
}

// DialContext connects a socket from the node to a literal address. Its signature fits http.Transport. The lab
// closes the connection if nobody did.
func (n *Node) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.wrap(n.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	}))
	if err != nil {
		return nil, err
	}
	n.lab.track(conn)
	return conn, nil
}

type listener struct {
	net.Listener
	lab *Lab
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.lab.track(conn)
	}
	return conn, err
}
