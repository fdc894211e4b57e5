package maps_test

import (
	"testing"

	"github.com/xdplb/xdplb/maps"
)

// What random histories meet too seldom, or cannot see: each rule by itself.

// A SYN that the client or the network sends twice stays with the backend that
// answered the first, if that was pinned; after a FIN it is a new connection.
func TestSYNComesTwice(t *testing.T) {
	p := newPlay(t)
	p.serve(1)
	p.serve(2)
	p.syn("a new connection", 2)
	p.serve(3)
	p.syn("the same SYN", 2)
	p.fin("the connection's FIN", 2)
	p.syn("a SYN after the FIN", 3)
	p.serve(1)
	p.wait(halfOpenIdle)
	p.syn("a SYN when the last one was never answered", 1)
}

// However old a pin is, a packet that is no SYN obeys it.
func TestOldPinIsObeyed(t *testing.T) {
	p := newPlay(t)
	p.serve(1)
	p.serve(2)
	p.syn("a new connection", 2)
	p.serve(3)
	p.wait(halfOpenIdle + 1)
	p.ack("a late answer to the SYN-ACK", 2)
	p.wait(2 * tcpIdle)
	p.ack("a packet after long silence", 2)
}

// A pin of the slot's own backend outlives settling. When that backend fails, the
// tuple is used again, and the backend comes back, the pin must not.
func TestStalePinDoesNotComeBack(t *testing.T) {
	p := newPlay(t)
	p.serve(1)
	p.serve(2)
	p.syn("a new connection", 2)
	p.wait(tcpIdle)
	p.ack("the connection", 2)
	p.settle()
	if n := maps.Moving(p.model.slots); n != 0 {
		t.Fatalf("%d slots move after the VIP settled", n)
	}
	p.set(3, 1, false)
	p.set(2, 1, true)
	p.syn("the tuple used again", 3)
	p.set(2, 1, false)
	p.serve(2)
	p.ack("the second connection", 3)
}

// A flow whose pin was pushed out by others belongs to the slot's old backend.
func TestFlowWithoutPinFallsBackToOld(t *testing.T) {
	p := newPlay(t)
	p.serve(1)
	p.syn("a new connection", 1)
	p.serve(2)
	p.ack("the connection", 1)
	p.forget()
	p.ack("the connection without its pin", 1)
}

// An old backend that failed has lost its flows: those that began since stay
// where they are when it comes back, even without their pins.
func TestOldThatFailedIsForgotten(t *testing.T) {
	p := newPlay(t)
	p.serve(1)
	p.serve(2)
	p.syn("a new connection", 2)
	p.set(1, 0, true)
	p.set(1, 0, false)
	p.serve(3)
	p.forget()
	p.ack("the connection without its pin", 2)
}

// singlePlay is a model, one connection, and three servers that begin drained.
type singlePlay struct {
	*testing.T
	model *model
	now   int64
	tuple maps.Tuple
}

func newPlay(t *testing.T) *singlePlay {
	p := &singlePlay{t, newModel(maps.HashKey{}.Words(), maps.MinTableSize), 0, tuple("198.18.0.1", "192.0.2.10", 40000, 80, tcp)}
	for id := range uint32(3) {
		p.set(id+1, 0, false)
	}
	return p
}

func (p *singlePlay) wait(seconds int64) { p.now += seconds }

func (p *singlePlay) set(id uint32, weight uint16, down bool) {
	p.wait(1)
	p.model.apply(p.now, change{id: id, server: server{address: address(id), weight: weight, down: down}})
}

// serve has server id get what is new and the others drain, and no slot empty meanwhile.
func (p *singlePlay) serve(id uint32) {
	p.set(id, 1, false)
	for other := uint32(1); other <= 3; other++ {
		if other != id && p.model.pool[other].weight != 0 {
			p.set(other, 0, p.model.pool[other].down)
		}
	}
}

func (p *singlePlay) settle() {
	p.wait(1)
	p.model.settle(p.now)
}

func (p *singlePlay) forget() {
	clear(p.model.halfOpen)
	clear(p.model.flows)
}

func (p *singlePlay) syn(what string, want uint32) {
	p.Helper()
	p.send(what, segment{syn: true}, want)
}
func (p *singlePlay) ack(what string, want uint32) { p.Helper(); p.send(what, segment{}, want) }
func (p *singlePlay) fin(what string, want uint32) {
	p.Helper()
	p.send(what, segment{closing: true}, want)
}

func (p *singlePlay) send(what string, s segment, want uint32) {
	p.Helper()
	p.wait(1)
	s.tuple = p.tuple
	if got := p.model.packet(p.now, s); got != want {
		p.Errorf("%s goes to %d, want %d", what, got, want)
	}
}
