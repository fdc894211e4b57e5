package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a process of which at least one thread is in a node's network namespace.
type Process struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
}

// Processes returns the processes that live in the node's network namespace, by process id. Threads that Do
// used count as long as they exist, which may be a moment longer than Do.
func (n *Node) Processes() ([]Process, error) {
	tasks, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var found []Process
	seen := map[int]bool{}
	for _, task := range tasks {
		var st unix.Stat_t
		if err := unix.Stat(task, &st); err != nil {
			// It ended meanwhile, or it is none of ours: root may look into whatever this process started.
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EACCES) {
				continue
			}
			return nil, fmt.Errorf("%s: %s: %w", n.Name, task, err)
		}
		if st.Ino != n.inode {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(task, "/")[2])
		if err != nil || seen[pid] {
			continue
		}
		seen[pid] = true
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		found = append(found, Process{PID: pid, Name: strings.TrimSpace(string(name))})
	}
	return found, nil
}
