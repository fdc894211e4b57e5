package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is a child process inside a node. It is used like the exec.Cmd that it holds. The child leads a
// process group of its own, which is killed when its context ends, when the lab closes, and when this process
// dies.
type Cmd struct {
	*exec.Cmd

	node *Node
	once sync.Once
	done chan struct{} // closed when the child has been waited for
	err  error
}

// Command prepares a child process in the node's network and mount namespaces. The working directory is that
// of this process if Dir is not set.
func (n *Node) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), node: n, done: make(chan struct{})}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = c.kill
	c.WaitDelay = 5 * time.Second // for pipes that grandchildren hold
	return c
}

// Start starts the child and does not wait for it; Wait must be called later.
func (c *Cmd) Start() error {
	dir, _ := os.Getwd()
	started := make(chan error, 1)
	go func() {
		_ = onThread(func() error {
			err := c.node.enter(dir)
			if err == nil {
				err = c.Cmd.Start()
			}
			if err == nil {
				c.node.lab.mu.Lock()
				c.node.lab.running[c] = struct{}{}
				c.node.lab.mu.Unlock()
			}
			if err == nil {
				// Pdeathsig follows the thread that started the child, so the thread must stay; but not in the
				// node, where it would count as a process that lives there.
				leave()
			}
			started <- err
			if err == nil {
				<-c.done
			}
			return nil
		})
	}()
	if err := <-started; err != nil {
		return c.node.wrap(err)
	}
	return nil
}

// leave takes the calling thread back to the network namespace of this process.
func leave() {
	if home, err := os.Open("/proc/self/ns/net"); err == nil {
		_ = unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
		_ = home.Close()
	}
}

// Wait waits for the child and returns what exec.Cmd.Wait returns. It may be called several times.
func (c *Cmd) Wait() error {
	c.once.Do(func() {
		c.err = c.Cmd.Wait()
		c.node.lab.mu.Lock()
		delete(c.node.lab.running, c)
		c.node.lab.mu.Unlock()
		close(c.done)
	})
	return c.err
}

// Run starts the child and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the child and returns what it printed. The error of a failed child ends with its stderr, if
// that was not set to go elsewhere.
func (c *Cmd) Output() ([]byte, error) {
	var out, errOut bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &errOut
	}
	err := c.Run()
	if text := bytes.TrimSpace(errOut.Bytes()); err != nil && len(text) > 0 {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return out.Bytes(), err
}

// CombinedOutput runs the child and returns what it printed to stdout and stderr.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

func (c *Cmd) kill() error {
	if c.Process == nil {
		return os.ErrProcessDone
	}
	// The group is there as long as the child has not been waited for.
	err := unix.Kill(-c.Process.Pid, unix.SIGKILL)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}
