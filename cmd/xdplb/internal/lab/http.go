package lab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// ServerHeader is the response header that names the node that answered.
const ServerHeader = "X-Server"

// MiB is the unit of downloads, in bytes.
const MiB = 1 << 20

// ServeHTTP serves HTTP in the node on a port, on every address of both families that the node has or gets,
// until the lab closes. `GET /` answers the node's name, `GET /download/<MiB>` the bytes of Download.
func (n *Node) ServeHTTP(port int) error {
	ln, err := n.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(ServerHeader, n.Name)
		_, _ = fmt.Fprintln(w, n.Name)
	})
	mux.HandleFunc("GET /download/{size}", func(w http.ResponseWriter, r *http.Request) {
		size, err := strconv.Atoi(r.PathValue("size"))
		if err != nil || size < 0 {
			http.Error(w, "the size is a number of MiB", http.StatusBadRequest)
			return
		}
		w.Header().Set(ServerHeader, n.Name)
		w.Header().Set("Content-Length", strconv.Itoa(size*MiB))
		_, _ = io.Copy(w, Download(size))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	n.lab.track(server)
	go func() { _ = server.Serve(ln) }()
	return nil
}

// Download returns the bytes of a download of that many MiB, the same at every call.
func Download(mib int) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{}), int64(mib)*MiB)
}

// Digest returns the SHA-256 of a download of that many MiB.
func Digest(mib int) [sha256.Size]byte {
	sum, _ := DigestOf(Download(mib)) // which has no errors
	return sum
}

// DigestOf returns the SHA-256 of all that r has.
func DigestOf(r io.Reader) (sum [sha256.Size]byte, err error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, r); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(hash.Sum(nil)), nil
}

// HTTPClient returns a client in the node that opens a new connection for every request.
func (n *Node) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}}
}

// WhoAnswers asks a URL on a new connection and returns the name that the server gave.
func WhoAnswers(ctx context.Context, client *http.Client, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("get %s: %s", url, response.Status)
	}
	return strings.TrimSpace(string(body)), nil
}
