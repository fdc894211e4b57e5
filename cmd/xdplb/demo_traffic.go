package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// answers says who answered the connections made to a VIP.
type answers struct {
	VIP          string         `json:"vip"`
	Connections  int            `json:"connections"`
	Failed       int            `json:"failed"`
	Answers      map[string]int `json:"answers"` // by server
	FirstFailure string         `json:"first_failure,omitempty"`
}

const (
	connectionsAtOnce = 16
	connectionLimit   = 5 * time.Second // lets a lost SYN be sent twice more
)

// ask makes connections to a VIP, one request on each, and calls each after every one.
func ask(ctx context.Context, client *lab.Node, vip netip.AddrPort, connections int, each func()) answers {
	type answer struct {
		server string
		err    error
	}
	todo, done := make(chan struct{}), make(chan answer)
	web := client.HTTPClient()
	url := fmt.Sprintf("http://%s/", vip)
	for range connectionsAtOnce {
		go func() {
			for range todo {
				limited, cancel := context.WithTimeout(ctx, connectionLimit)
				server, err := lab.WhoAnswers(limited, web, url)
				cancel()
				done <- answer{server, err}
			}
		}()
	}
	go func() {
		for range connections {
			todo <- struct{}{}
		}
		close(todo)
	}()

	result := answers{VIP: vip.String(), Connections: connections, Answers: map[string]int{}}
	for range connections {
		a := <-done
		if a.err == nil {
			result.Answers[a.server]++
		} else {
			result.Failed++
			if result.FirstFailure == "" {
				result.FirstFailure = a.err.Error()
			}
		}
		each()
	}
	return result
}

// download is an HTTP download that is read only as far as it is told to be: TCP's flow control holds the
// server back, so that what happens meanwhile happens during the download, on a machine of any speed.
type download struct {
	server string // that sends it
	size   int    // MiB
	read   int64  // bytes
	body   io.ReadCloser
	hash   hash.Hash
	err    error // the first; nothing is read after it
}

func startDownload(ctx context.Context, client *lab.Node, vip netip.AddrPort, mib int) (*download, error) {
	url := fmt.Sprintf("http://%s/download/%d", vip, mib)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.HTTPClient().Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		_ = response.Body.Close()
		return nil, fmt.Errorf("get %s: %s", url, response.Status)
	}
	return &download{
		server: response.Header.Get(lab.ServerHeader), size: mib, body: response.Body, hash: sha256.New(),
	}, nil
}

// upTo reads until that many bytes have come in all.
func (d *download) upTo(bytes int64) {
	if d.err != nil {
		return
	}
	n, err := io.CopyN(d.hash, d.body, bytes-d.read)
	d.read += n
	d.err = err
}

// finish reads the rest and returns the digest of all, in hexadecimal.
func (d *download) finish() string {
	d.upTo(int64(d.size) * lab.MiB)
	_ = d.body.Close()
	return hex.EncodeToString(d.hash.Sum(nil))
}
